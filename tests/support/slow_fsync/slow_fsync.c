// Preloaded into a program: its first fsync takes SLOW_FSYNC_S seconds, as on a disk that others keep
// busy.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <unistd.h>

int fsync(int file) {
  static int calls = 0;
  const char* seconds = getenv("SLOW_FSYNC_S");
  if (calls++ == 0 && seconds) sleep((unsigned)atoi(seconds));
  int (*const real)(int) = (int (*)(int))dlsym(RTLD_NEXT, "fsync");
  return real(file);
}
