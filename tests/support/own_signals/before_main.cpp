// Linked into a program, this makes it own its signals before main() (configs/signals.h).
#include "configs/signals.h"

namespace {
[[gnu::constructor]] void before_main() { lorashard::own_signals(); }
}  // namespace
