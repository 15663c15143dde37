// For tests: the declarations of DeepStream's nvdsinfer_custom_impl.h that an output parser sees, written from its API
// reference (NvDsInferParseDetectionParams, NvDsInferParseCustomFunc, CHECK_CUSTOM_PARSE_FUNC_PROTOTYPE).
// It is not NVIDIA's header, and is never given to users.

#pragma once

#include <string>
#include <type_traits>
#include <vector>

#include "nvdsinfer.h"

struct NvDsInferParseDetectionParams {
    unsigned int numClassesConfigured;
    std::vector<float> perClassPreclusterThreshold;
    std::vector<float> perClassPostclusterThreshold;
    std::vector<float>& perClassThreshold = perClassPreclusterThreshold;
};

typedef bool (*NvDsInferParseCustomFunc)(std::vector<NvDsInferLayerInfo> const& outputLayersInfo,
                                         NvDsInferNetworkInfo const& networkInfo,
                                         NvDsInferParseDetectionParams const& detectionParams,
                                         std::vector<NvDsInferObjectDetectionInfo>& objectList);

#define CHECK_CUSTOM_PARSE_FUNC_PROTOTYPE(function) \
    static_assert(std::is_same<decltype(&(function)), NvDsInferParseCustomFunc>::value, #function " has another type")
