// cuBLASLt as one stream uses it: handle, workspace and the algorithm chosen for each GEMM.
#pragma once

#include <memory>

namespace lorashard::cuda {

struct MatmulPlans;  // matmul.cpp

// For the current device. Errors: status 3, naming the call and the device.
std::shared_ptr<MatmulPlans> make_matmul_plans();

}  // namespace lorashard::cuda
