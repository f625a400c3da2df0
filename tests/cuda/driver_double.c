// A stand-in for the CUDA driver (libcuda.so.1), linked into the test of cuDNN's plans only and
// never installed. It lets cuDNN load the code it generated and ask for its kernels, so that plans
// are finished without a device; everything else answers that there is none.
//
// cuda.h is left out, so that functions which only fail need no parameters.
#include <stdlib.h>

typedef int Result;  // CUresult
enum { kSuccess = 0, kOutOfMemory = 2, kNoDevice = 100, kDriverVersion = 13000 };

Result cuDriverGetVersion(int* version) {
  *version = kDriverVersion;
  return kSuccess;
}
Result cuDeviceGetCount(int* count) {
  *count = 0;
  return kSuccess;
}
Result cuLibraryLoadData(void** library) {
  *library = malloc(1);
  return *library ? kSuccess : kOutOfMemory;
}
Result cuLibraryUnload(void* library) {
  free(library);
  return kSuccess;
}
Result cuLibraryGetKernel(void** kernel, void* library) {
  *kernel = library;
  return kSuccess;
}
Result cuKernelSetAttribute(void) { return kSuccess; }
Result cuKernelGetAttribute(int* value) {
  *value = 0;
  return kSuccess;
}
Result cuKernelGetFunction(void** function, void* kernel) {
  *function = kernel;
  return kSuccess;
}
static Result text_of(Result result, const char** text) {
  (void)result;
  *text = "the driver double has no device";
  return kSuccess;
}
Result cuGetErrorName(Result result, const char** text) { return text_of(result, text); }
Result cuGetErrorString(Result result, const char** text) { return text_of(result, text); }

// cuDNN wants to find these before it makes a plan, and calls none of them.
#define NO_DEVICE(name) \
  Result name(void) { return kNoDevice; }
NO_DEVICE(cuInit)
NO_DEVICE(cuDeviceGet)
NO_DEVICE(cuCtxGetCurrent)
NO_DEVICE(cuCtxGetLimit)
NO_DEVICE(cuCtxPopCurrent)
NO_DEVICE(cuCtxPushCurrent)
NO_DEVICE(cuStreamGetCtx)
NO_DEVICE(cuLinkCreate)
NO_DEVICE(cuLinkAddData)
NO_DEVICE(cuLinkComplete)
NO_DEVICE(cuLinkDestroy)
NO_DEVICE(cuLaunchKernel)
NO_DEVICE(cuLaunchKernelEx)
NO_DEVICE(cuLaunchCooperativeKernel)
NO_DEVICE(cuLibraryLoadFromFile)
NO_DEVICE(cuOccupancyMaxPotentialClusterSize)
