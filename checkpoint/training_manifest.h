// The manifest of a training checkpoint: counters and the digest of every file, and its own.
#pragma once

#include <map>
#include <string>

#include "checkpoint/manifest.pb.h"
#include "checkpoint/training_state.h"

namespace lorashard {

inline constexpr const char* kManifestFile = "manifest.textproto";

// Writes DIR/manifest.textproto for the files already there, whose SHA-256 are `digests` by name.
void write_training_manifest(const fs::path& dir, const TrainingCounters& counters,
                             const std::map<std::string, std::string>& digests);

// Reads DIR/manifest.textproto and checks its own digest, and that the directory holds the files
// that it lists with their sizes and SHA-256; other files are a user's. Errors (status 2) name the
// file.
TrainingManifest verify_training_manifest(const fs::path& dir);

}  // namespace lorashard
