// The one source of the whole-program tests that differs between build folders.
#include "tests/launch/programs.h"

namespace lorashard::test {

const char* const kLorashard = LORASHARD_PROGRAM;
const char* const kSignalTimer = SIGNAL_TIMER;
const char* const kSlowFsync = SLOW_FSYNC;

}  // namespace lorashard::test
