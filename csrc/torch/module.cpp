// The Python module `_C`: importing it loads this library, whose static initialisers register the
// operators. It holds nothing else, so the stable ABI serves every Python from 3.10 on.
#include <Python.h>

extern "C" PyMODINIT_FUNC PyInit__C(void) {
  static PyModuleDef definition = {
      PyModuleDef_HEAD_INIT, "_C", nullptr, -1, nullptr, nullptr, nullptr, nullptr, nullptr};
  return PyModule_Create(&definition);
}
