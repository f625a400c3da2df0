// Stream capture and graphs. What is enqueued on a captured stream becomes a node of a graph, and
// events order nodes; launching the graph enqueues all of it as one work, whose nodes run in a
// random order that their dependencies allow.
#include <cudasim/queue_state.h>
#include <cudasim/settings.h>

#include <algorithm>
#include <utility>

using namespace cudasim;

// Nodes are immutable once the capture has ended.
struct CUgraph_st {
  std::vector<Node> nodes;
};
struct CUgraphExec_st {
  std::vector<Node> nodes;
};

namespace cudasim {
namespace {

using Lock = std::unique_lock<std::mutex>;

bool forbids(const Capture& capture) {
  return capture.mode == cudaStreamCaptureModeGlobal ||
         (capture.mode == cudaStreamCaptureModeThreadLocal &&
          capture.thread == std::this_thread::get_id());
}

void add(std::vector<size_t>& last, const std::vector<size_t>& more) {
  for (const size_t node : more)
    if (std::find(last.begin(), last.end(), node) == last.end()) last.push_back(node);
}

// Does every node come before `last`, or is it one of them?
bool all_joined(const std::vector<Node>& nodes, std::vector<size_t> last) {
  std::vector<bool> met(nodes.size());
  size_t count = 0;
  while (!last.empty()) {
    const size_t node = last.back();
    last.pop_back();
    if (met[node]) continue;
    met[node] = true;
    ++count;
    last.insert(last.end(), nodes[node].after.begin(), nodes[node].after.end());
  }
  return count == nodes.size();
}

// One launch. Called until it returns true.
class Run {
 public:
  Run(const std::vector<Node>& nodes, cudaStream_t stream) {
    for (const Node& n : nodes) waiting_.push_back({n.make(stream), n.after, waiting_.size()});
    done_.resize(nodes.size());
  }
  bool go_on() {
    for (bool moved = true; moved && !waiting_.empty();) {
      moved = false;
      for (size_t tried = 0, i = next_random(); tried < waiting_.size() && !moved; ++tried, ++i)
        moved = try_node(i % waiting_.size());
    }
    return waiting_.empty();
  }

 private:
  struct Waiting {
    Work work;
    std::vector<size_t> after;
    size_t number;
  };
  bool try_node(size_t i) {
    Waiting& w = waiting_[i];
    for (const size_t a : w.after)
      if (!done_[a]) return false;
    if (!w.work()) return false;
    done_[w.number] = true;
    waiting_.erase(waiting_.begin() + std::ptrdiff_t(i));
    return true;
  }
  std::vector<Waiting> waiting_;
  std::vector<bool> done_;
};

}  // namespace

cudaError_t state_of(const Capture& capture) {
  return capture.valid ? cudaSuccess : cudaErrorStreamCaptureInvalidated;
}

cudaError_t refuse(const Place& place, cudaError_t error) {
  if (place.capture->ended) return error;
  if (!std::exchange(place.capture->valid, false)) return cudaErrorStreamCaptureInvalidated;
  return error;
}

cudaError_t refuse_in_capture(cudaError_t error) {
  const Lock lock(streams().mutex);
  for (const auto& capture : streams().captures)
    if (forbids(*capture)) return refuse({capture, {}}, error);
  return cudaSuccess;
}

cudaError_t capture_work(CUstream_st* stream, MakeWork make) {
  Place& place = stream->place;
  if (const cudaError_t status = state_of(*place.capture); status != cudaSuccess) return status;
  place.capture->nodes.push_back({std::move(make), place.last});
  place.last = {place.capture->nodes.size() - 1};
  return cudaSuccess;
}

cudaError_t capture_record(EventState& event, CUstream_st* stream) {
  if (const cudaError_t status = state_of(*stream->place.capture); status != cudaSuccess)
    return status;
  event.place = stream->place;
  return cudaSuccess;
}

bool capture_wait(CUstream_st* stream, const EventState& event, cudaError_t& status) {
  const auto& mine = stream->place.capture;
  const auto& theirs = event.place.capture;
  if (!mine && !theirs) return false;
  if (mine && !theirs) {
    if (event.recorded > 0) status = refuse(stream->place, cudaErrorStreamCaptureIsolation);
    return true;
  }
  if (theirs->ended) {
    status = mine ? refuse(stream->place, cudaErrorStreamCaptureIsolation) : cudaErrorCapturedEvent;
    return true;
  }
  if (mine && mine != theirs) {
    refuse(event.place, cudaErrorStreamCaptureMerge);
    status = refuse(stream->place, cudaErrorStreamCaptureMerge);
    return true;
  }
  status = state_of(*theirs);
  if (status != cudaSuccess) return true;
  stream->place.capture = theirs;  // a stream that forks off the capture joins it
  add(stream->place.last, event.place.last);
  return true;
}

}  // namespace cudasim

extern "C" {

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode) {
  if (!stream) return cudaErrorStreamCaptureUnsupported;
  const Lock lock(streams().mutex);
  if (stream->place.capture) return refuse(stream->place, cudaErrorStreamCaptureUnsupported);
  auto capture = std::make_shared<Capture>();
  capture->mode = mode;
  capture->thread = std::this_thread::get_id();
  capture->origin = stream;
  streams().captures.push_back(capture);
  stream->place = {std::move(capture), {}};
  return cudaSuccess;
}

cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status) {
  if (!stream) return refuse_in_capture(cudaErrorStreamCaptureImplicit);
  const Lock lock(streams().mutex);
  const auto& capture = stream->place.capture;
  *status = !capture         ? cudaStreamCaptureStatusNone
            : capture->valid ? cudaStreamCaptureStatusActive
                             : cudaStreamCaptureStatusInvalidated;
  return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  *graph = nullptr;
  if (!stream) return cudaErrorIllegalState;
  const Lock lock(streams().mutex);
  const std::shared_ptr<Capture> capture = stream->place.capture;
  if (!capture) return cudaErrorIllegalState;
  if (capture->origin != stream) return refuse(stream->place, cudaErrorStreamCaptureUnmatched);
  if (capture->mode != cudaStreamCaptureModeRelaxed &&
      capture->thread != std::this_thread::get_id())
    return cudaErrorStreamCaptureWrongThread;
  const std::vector<size_t> last = stream->place.last;
  capture->ended = true;
  std::erase(streams().captures, capture);
  for (CUstream_st* s : streams().all)
    if (s->place.capture == capture) s->place = {};
  if (!capture->valid) return cudaErrorStreamCaptureInvalidated;
  if (!all_joined(capture->nodes, last)) return cudaErrorStreamCaptureUnjoined;
  *graph = new CUgraph_st{std::move(capture->nodes)};
  return cudaSuccess;
}

cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t* nodes, size_t* count) {
  if (nodes) return cudaErrorNotSupported;
  *count = graph->nodes.size();
  return cudaSuccess;
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t* made, cudaGraph_t graph, unsigned long long) {
  *made = new CUgraphExec_st{graph->nodes};
  return cudaSuccess;
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t graph, cudaStream_t stream) {
  if (!stream) return cudaErrorInvalidResourceHandle;
  if (const auto e = refuse_captured(stream)) return e;  // a graph within a graph is not simulated
  return enqueue_made(stream, [&](cudaStream_t s) -> Work {
    return [run = std::make_shared<Run>(graph->nodes, s)] { return run->go_on(); };
  });
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  delete graph;
  return cudaSuccess;
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t graph) {
  delete graph;
  return cudaSuccess;
}

}  // extern "C"
