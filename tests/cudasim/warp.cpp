// Exchanges between the lanes of a warp.
#include <cudasim/block.h>
#include <cudasim/sanitizers.h>
#include <cudasim/violation.h>

namespace cudasim {

uint32_t BlockRunner::existing_lanes(unsigned warp) const {
  const size_t lanes = threads_.size() - size_t{warp} * 32;
  return lanes >= 32 ? ~0u : (1u << lanes) - 1;
}

Rendezvous& BlockRunner::meeting_of(Warp& warp, uint32_t mask) {
  for (Rendezvous& meeting : warp.meetings)
    if (meeting.mask == mask) return meeting;
  // A place whose last meeting is over. Its words may still be read: the next set is used.
  for (Rendezvous& meeting : warp.meetings)
    if (!meeting.arrived) {
      meeting.mask = mask;
      return meeting;
    }
  fail("more than " + std::to_string(Warp::kMasks) + " masks in use in one warp");
}

Exchange BlockRunner::exchange(uint32_t mask, const uint32_t* words, int count, Site site) {
  SimThread& me = *current_thread;
  me.site = site;
  if (!(mask >> me.lane & 1u)) fail("a lane calls a warp collective whose mask leaves it out");
  const uint32_t wanted = mask & existing_lanes(me.warp);
  Rendezvous& meeting = meeting_of(*warps_[me.warp], mask);
  const unsigned turn = meeting.turn;
  if (!meeting.arrived) {
    meeting.site = site;
    meeting.given[turn] = 0;
  } else if (!(meeting.site == site)) {
    fail("lanes of one mask at different warp collectives; the first came to " +
         std::string(meeting.site.file) + ":" + std::to_string(meeting.site.line));
  }
  // Word by word: a call of memcpy would be seen by ThreadSanitizer.
  volatile uint32_t* slot = meeting.words[turn][me.lane];
  for (int i = 0; i < count; ++i) slot[i] = words[i];
  meeting.given[turn] |= 1u << me.lane;
  meeting.arrived |= 1u << me.lane;
  void* const tag = &meeting.given[turn];
  release(tag);
  if (meeting.arrived == wanted) {
    meeting.arrived = 0;
    meeting.turn ^= 1;
    for (unsigned lane = 0; lane < 32; ++lane)
      if ((wanted >> lane & 1u) && lane != me.lane) make_ready(threads_[me.warp * 32 + lane]);
  } else {
    me.state = kInExchange;
    continue_next();
  }
  acquire(tag);
  return {meeting.words[turn], meeting.given[turn]};
}

Exchange warp_exchange(uint32_t mask, const uint32_t* words, int count, Site site) {
  BlockRunner* runner = BlockRunner::active();
  if (!runner) throw Violation("a warp collective outside a kernel");
  return runner->exchange(mask, words, count, site);
}

}  // namespace cudasim
