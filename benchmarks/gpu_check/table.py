"""All checks, in the order in which they are run."""

from __future__ import annotations

from collections.abc import Mapping

from gpu_check.check import Check
from gpu_check.checks.api import check_memory_accesses, check_tests
from gpu_check.checks.arrays import check_arrays
from gpu_check.checks.capture import check_capture
from gpu_check.checks.double import check_double
from gpu_check.checks.engine import BUILDS, check_engine
from gpu_check.checks.interpreter import check_lock
from gpu_check.checks.parts import check_parts
from gpu_check.checks.placement import check_placement
from gpu_check.checks.resize import check_sizes, check_times
from gpu_check.checks.runtime import check_calls, check_devices, check_frames_of_the_host, check_memory, check_threads
from gpu_check.checks.sampler import check_sampler

_ALL = (
    Check("tests", "tests/engine/test_gpu.py", 180, check_tests),
    Check("resize", "frames of 300 sizes are resized as OpenCV does it", 180, check_sizes),
    Check("memcheck", "the same under compute-sanitizer", 240, check_memory_accesses),
    Check("calls", "the runtime's calls: plain, recorded, replayed", 60, check_calls),
    Check("frames", "batches of frames that are resized on the GPU", 60, check_frames_of_the_host),
    Check("threads", "four threads of 200 calls", 60, check_threads),
    Check("memory", "memory comes back after 50 engines", 90, check_memory),
    Check("devices", "calls restore the caller's GPU", 30, check_devices),
    Check("arrays", "tensors on the GPU in and out", 60, check_arrays),
    Check("capture", "hazards while a CUDA graph is recorded", 60, check_capture),
    Check("lock", "Python goes on while the GPU works", 60, check_lock),
    Check("resize-times", "what resizing costs on the GPU and on the CPU", 90, check_times),
    Check("double", "double precision in the resizing kernel", 30, check_double),
    Check("sampler", "five forms of the sampler, timed", 120, check_sampler),
    Check("placement", "what FP16 does to detections", 300, check_placement),
    Check("parts", "where the time of FP16 models goes", 120, check_parts),
    Check("engine", "TensorRT: FP16, two engines open at once", 900, check_engine),
    *(build.check for build in BUILDS),
)
CHECKS: Mapping[str, Check] = {check.name: check for check in _ALL}
