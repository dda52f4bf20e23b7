// The Python module `_C`. Importing it loads this library, whose static initialisers register the
// operators. The module also has a function that returns the instruction set of the CPU kernels. It
// uses Python's stable ABI and works with Python 3.10 and later.
#include <Python.h>

#include <stdexcept>

#include "params/device.h"

namespace {

PyObject* cpu_capability(PyObject*, PyObject*) {
  try {
    return PyUnicode_FromString(vae_fused::cpu::capability_name());
  } catch (const std::invalid_argument& error) {
    PyErr_SetString(PyExc_ValueError, error.what());
    return nullptr;
  }
}

PyMethodDef kMethods[] = {
    {"cpu_capability", cpu_capability, METH_NOARGS,
     "The instruction set of the CPU kernels: avx512, avx2 or default."},
    {nullptr, nullptr, 0, nullptr},
};

PyModuleDef kDefinition = {
    PyModuleDef_HEAD_INIT, "_C", nullptr, -1, kMethods, nullptr, nullptr, nullptr, nullptr};

}  // namespace

extern "C" PyMODINIT_FUNC PyInit__C(void) { return PyModule_Create(&kDefinition); }
