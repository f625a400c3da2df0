// What queue.cpp and capture.cpp share: streams, events and captures.
#pragma once

#include <cudasim/queue.h>

#include <condition_variable>
#include <deque>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace cudasim {

// Work that is recorded, and the nodes that come before it.
struct Node {
  MakeWork make;
  std::vector<size_t> after;
};

// A capture: what its streams were given since cudaStreamBeginCapture.
struct Capture {
  cudaStreamCaptureMode mode = cudaStreamCaptureModeGlobal;
  std::thread::id thread;
  CUstream_st* origin = nullptr;
  std::vector<Node> nodes;
  bool valid = true, ended = false;
};

// A stream's place in a capture: what it is given next comes after `last`.
struct Place {
  std::shared_ptr<Capture> capture;
  std::vector<size_t> last;
};

// How often an event was recorded, and how many of those records the streams have passed.
struct EventState {
  uint64_t recorded = 0, passed = 0;
  CUstream_st* stream = nullptr;  // of the last record
  Place place;                    // of the last record, if a capture took it
};

struct Item {
  Work work;                          // null: a wait
  std::shared_ptr<EventState> event;  // waited for
  uint64_t record = 0;
};

struct Streams {
  std::mutex mutex;  // guards every queue, event and capture
  std::condition_variable idle;
  std::vector<CUstream_st*> all;
  std::vector<std::shared_ptr<Capture>> captures;  // that have not ended
};
Streams& streams();

// The functions below expect that mutex to be held.

// The error of a capture that something illegal ended, else none.
cudaError_t state_of(const Capture& capture);
cudaError_t capture_work(CUstream_st* stream, MakeWork make);
cudaError_t capture_record(EventState& event, CUstream_st* stream);
// True if the wait concerns a capture; then `status` is what the call returns.
bool capture_wait(CUstream_st* stream, const EventState& event, cudaError_t& status);
// For calls on a stream or event that a capture holds: ends that capture with `error`.
cudaError_t refuse(const Place& place, cudaError_t error);

}  // namespace cudasim

struct CUstream_st {
  int device = 0;
  std::deque<cudasim::Item> items;
  std::thread::id runner;  // who runs it; none if idle
  cudasim::Place place;    // while it is captured
};

struct CUevent_st {
  std::shared_ptr<cudasim::EventState> state = std::make_shared<cudasim::EventState>();
};
