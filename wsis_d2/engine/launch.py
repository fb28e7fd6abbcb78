# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Start the processes of a run: Detectron2's launcher on GPUs, gloo processes on CPUs."""

import os
import re
import socket
import sys
import tempfile
import traceback
from collections.abc import Callable

import torch
from detectron2.engine import launch as launch_on_gpus
from detectron2.utils import comm
from torch import distributed, multiprocessing
from torch.multiprocessing import ProcessExitedException, ProcessRaisedException

from wsis_d2.utils.cli import error_line
from wsis_d2.utils.errors import InputError


def launch(
    function: Callable[..., None],
    num_processes: int,
    *,
    num_machines: int = 1,
    machine_rank: int = 0,
    dist_url: str = "auto",
    args: tuple = (),
) -> None:
    """Run a function in several processes, as Detectron2's ``launch``, also without a GPU.

    Args:
        function: what each process does.
        num_processes: GPUs of each machine; without a GPU, processes of each machine. 0 is 1.
        num_machines, machine_rank, dist_url: as in Detectron2; "auto" is for one machine.
        args: of the function.

    Raises:
        InputError: numbers that cannot be, or what a process raised as such.
        SystemExit: a process left with an exit status of its own.
    """
    on_gpus = torch.cuda.is_available()
    if num_processes < 0 or num_machines < 1 or not 0 <= machine_rank < num_machines:
        raise InputError(
            f"--num-gpus {num_processes}, --num-machines {num_machines}, --machine-rank "
            f"{machine_rank}: expected 0 or more, 1 or more, and 0 to below the number of machines"
        )
    if num_machines > 1 and num_processes == 0:
        raise InputError("--num-gpus 0: expected 1 or more on each of several machines")
    if num_machines > 1 and dist_url == "auto":
        raise InputError("--dist-url auto is for one machine; name an address that all reach")
    if num_processes * num_machines <= 1:
        function(*args)
        return
    if on_gpus and num_processes > torch.cuda.device_count():
        raise InputError(
            f"--num-gpus {num_processes}: {torch.cuda.device_count()} are visible on this machine"
        )
    with tempfile.TemporaryDirectory() as folder:
        told = os.path.join(folder, "error")
        try:
            start = launch_on_gpus if on_gpus else _launch_on_cpus
            start(
                _tell, num_processes, num_machines=num_machines, machine_rank=machine_rank,
                dist_url=dist_url, args=(told, function, args),
            )  # fmt: skip
        except (ProcessRaisedException, ProcessExitedException) as error:
            # Whichever process ends first is reported: one may only have lost the one at fault.
            if os.path.exists(told):
                with open(told, encoding="utf-8") as file:
                    raise InputError(file.read()) from None
            if lost_a_process(error):
                raise InputError(
                    "a process of this run has ended, and the others with it; its last "
                    "output says why"
                ) from None
            if isinstance(error, ProcessRaisedException):
                raise
            if error.signal_name:
                raise InputError(
                    f"a process was ended by {error.signal_name}, usually for lack of "
                    "memory; lower SOLVER.IMS_PER_BATCH or the number of processes"
                ) from None
            sys.exit(error.exit_code)


def lost_a_process(error: BaseException) -> bool:
    """Whether a process failed because another had ended: that one has the reason."""
    return isinstance(error, RuntimeError | ProcessRaisedException) and bool(
        re.search(r"Connection (closed|reset) by peer|Broken pipe", str(error))
    )


def _tell(told: str, function: Callable[..., None], args: tuple) -> None:
    """Run the function; leave the line of an error that the user can correct in a file.

    The traceback of a bug is printed here: the launcher shows that of the process which ends first.
    """
    try:
        function(*args)
    except Exception as error:
        line = error_line(error)
        if line is None:
            if not lost_a_process(error):
                traceback.print_exc()
        else:
            with open(f"{told}{os.getpid()}", "w", encoding="utf-8") as file:
                file.write(line)
            os.replace(f"{told}{os.getpid()}", told)
        raise


def _launch_on_cpus(
    function: Callable[..., None],
    num_processes: int,
    *,
    num_machines: int,
    machine_rank: int,
    dist_url: str,
    args: tuple,
) -> None:
    if dist_url == "auto":
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            dist_url = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    multiprocessing.spawn(
        _worker,
        nprocs=num_processes,
        args=(function, num_processes, num_machines, machine_rank, dist_url, args),
    )


def _worker(
    local_rank: int,
    function: Callable[..., None],
    num_processes: int,
    num_machines: int,
    machine_rank: int,
    dist_url: str,
    args: tuple,
) -> None:
    torch.set_num_threads(max(1, torch.get_num_threads() // num_processes))
    distributed.init_process_group(
        "gloo",
        init_method=dist_url,
        world_size=num_processes * num_machines,
        rank=machine_rank * num_processes + local_rank,
    )
    for machine in range(num_machines):
        ranks = list(range(machine * num_processes, (machine + 1) * num_processes))
        group = distributed.new_group(ranks)
        if machine == machine_rank:
            comm._LOCAL_PROCESS_GROUP = group  # Detectron2 asks it for the local rank.
    try:
        function(*args)
        comm.synchronize()
    finally:
        distributed.destroy_process_group()
