#include "parallel/peer_watch.h"

#include <algorithm>

namespace lorashard {

PeerWatch::PeerWatch(int rank, int ranks) : rank_(rank), peers_(size_t(ranks)) {}

void PeerWatch::heard(int peer, const Heartbeat& beat, double now) {
  Peer& p = peers_[size_t(peer)];
  if (!p.known || beat.group == 0 || beat.progress != p.beat.progress) p.progress_at = now;
  p.known = true;
  p.heard_at = now;
  p.beat = beat;
}

void PeerWatch::observe_self(const Heartbeat& beat, double now) {
  if (beat.group == 0 || beat.progress != self_.progress) since_ = now;
  self_ = beat;
}

double PeerWatch::waited(double now) const { return now - since_; }

bool PeerWatch::silent(int peer, double timeout, double now) const {
  const Peer& p = peers_[size_t(peer)];
  return peer != rank_ && !p.beat.leaving && now - p.heard_at >= timeout;
}

bool PeerWatch::must_end(const std::vector<int>& members, double timeout, double now) const {
  if (timeout <= 0) return false;
  const auto gave_up = [](const Peer& p) { return p.beat.lost; };
  if (std::any_of(peers_.begin(), peers_.end(), gave_up)) return true;
  if (self_.group == 0 || waited(now) < timeout) return false;
  const auto is_silent = [&](int r) { return silent(r, timeout, now); };
  if (std::any_of(members.begin(), members.end(), is_silent)) return true;
  for (size_t r = 0; r < peers_.size(); ++r) {
    if (int(r) != rank_ && now - peers_[r].progress_at < timeout) return false;
  }
  return true;
}

PeerWatch::Awaited PeerWatch::awaited(const std::vector<int>& members, double timeout,
                                      double now) const {
  Awaited found;
  for (const int r : members) {
    if (r == rank_) continue;
    const Peer& p = peers_[size_t(r)];
    if (silent(r, timeout, now)) {
      found.silent.push_back(r);
      found.silent_s = std::max(found.silent_s, now - p.heard_at);
      found.never_heard |= !p.known;
    } else if (p.beat.group != self_.group || p.beat.call < self_.call) {
      found.elsewhere.push_back(r);
    }
  }
  return found;
}

std::vector<int> PeerWatch::never_heard() const {
  std::vector<int> ranks;
  for (size_t r = 0; r < peers_.size(); ++r) {
    if (int(r) != rank_ && !peers_[r].known) ranks.push_back(int(r));
  }
  return ranks;
}

}  // namespace lorashard
