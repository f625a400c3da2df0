// What these tests start and preload, in the build folder that they belong to.
#pragma once

namespace lorashard::test {

extern const char* const kLorashard;    // the program
extern const char* const kSignalTimer;  // preloaded: tests/support/signal_timer
extern const char* const kSlowFsync;    // preloaded: tests/support/slow_fsync

}  // namespace lorashard::test
