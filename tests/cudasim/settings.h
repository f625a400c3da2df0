// How the simulator runs, from the environment; tests may change it between drains.
//   CUDASIM_ORDER   forward | reverse | random   order in which threads of a block run
//   CUDASIM_BLOCKS  forward | reverse            order of the blocks of a grid
//   CUDASIM_SEED    number behind every random choice (1)
//   CUDASIM_GUARD   0: device memory stays within the host's reach (1)
//   CUDASIM_DEVICES number of devices (16); CUDASIM_MEMORY_MIB memory of each (65536, never touched
//                   before it is used)
#pragma once

#include <cstdint>

namespace cudasim {

enum class Order : uint8_t { FORWARD, REVERSE, RANDOM };

struct Settings {
  Order threads = Order::FORWARD;
  bool reverse_blocks = false;
  uint64_t seed = 1;
  bool guard = true;
  int devices = 16;
  uint64_t memory_bytes = uint64_t{65536} << 20;
};

Settings& settings();

// The next of the random numbers that follow from the seed.
uint64_t next_random();

}  // namespace cudasim
