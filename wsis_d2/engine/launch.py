# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Start the processes of a run: Detectron2's launcher on GPUs, gloo processes on CPUs."""

import socket
from collections.abc import Callable

import torch
from detectron2.engine import launch as launch_on_gpus
from detectron2.utils import comm
from torch import distributed, multiprocessing


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
        num_processes: GPUs of each machine; without a GPU, processes of each machine.
        num_machines, machine_rank, dist_url: as in Detectron2; "auto" is for one machine.
        args: of the function.
    """
    world_size = num_processes * num_machines
    if torch.cuda.is_available() or world_size == 1:
        launch_on_gpus(
            function, num_processes, num_machines=num_machines, machine_rank=machine_rank,
            dist_url=dist_url, args=args,
        )  # fmt: skip
        return
    if dist_url == "auto":
        if num_machines > 1:
            raise ValueError("--dist-url auto is for one machine, name an address that all reach")
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
