// Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
// An empty Python module: torch.ops.load_library loads the operators, `import wsis_d2._C` works too.
#ifndef Py_LIMITED_API
#define Py_LIMITED_API 0x030A0000  // one library for Python 3.10 and newer
#endif
#include <Python.h>

static PyModuleDef module = {
    PyModuleDef_HEAD_INIT, "_C", "Operators of wsis_d2; see torch.ops.wsis_d2.", -1, nullptr,
    nullptr,               nullptr, nullptr, nullptr,
};

PyMODINIT_FUNC PyInit__C(void) {
  return PyModule_Create(&module);
}
