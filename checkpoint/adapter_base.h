// Whether an adapter was made for the base at hand: by digest where it carries one, else by name.
#pragma once

#include <string>
#include <vector>

#include "checkpoint/adapter.h"
#include "checkpoint/base_model.h"

namespace lorashard {

// Error (status 2) at `where` if the adapter says that it was made for another base.
void check_adapter_base(const Adapter& adapter, const std::string& where,
                        const std::string& base_digest);

// Notes on an adapter that carries no digest of its base, as those made elsewhere:
// whether the base that it names is this one. Nothing if it carries one.
std::vector<std::string> adapter_base_notes(const Adapter& adapter, const std::string& where,
                                            const BaseModel& base);

}  // namespace lorashard
