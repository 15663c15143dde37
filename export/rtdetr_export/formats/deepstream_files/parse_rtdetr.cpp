// Turns the outputs of an rtdetr-deploy model into the objects of NVIDIA DeepStream's nvinfer.
//
//   labels   (N)      INT32   class index
//   boxes    (N, 4)   FLOAT   x1, y1, x2, y2 in [0, 1] of the network's input
//   scores   (N)      FLOAT   in [0, 1]
//
// The dimensions are those of one frame, without the batch. Objects are in pixels of the network's input; nvinfer
// scales them to the frame. There is no NMS, and none is needed: cluster-mode=4.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <iostream>
#include <string>
#include <vector>

#include "nvdsinfer_custom_impl.h"

namespace {

constexpr const char* kFunction = "NvDsInferParseRtdetr";
constexpr unsigned int kCorners = 4;

struct Outputs {
    const std::int32_t* labels;
    const float* boxes;
    const float* scores;
    unsigned int rows;
};

bool fail(const char* layer, const std::string& problem) {
    std::cerr << kFunction << ": output '" << layer << "' " << problem << std::endl;
    return false;
}

const NvDsInferLayerInfo* find_layer(const std::vector<NvDsInferLayerInfo>& layers, const char* name) {
    for (const NvDsInferLayerInfo& layer : layers) {
        if (layer.layerName != nullptr && std::strcmp(layer.layerName, name) == 0) {
            return &layer;
        }
    }
    return nullptr;
}

// Returns the dimensions as they are written: (300, 4).
std::string to_text(const NvDsInferDims& dims) {
    std::string text;
    for (unsigned int i = 0; i < dims.numDims && i < NVDSINFER_MAX_DIMS; ++i) {
        text += (i == 0 ? "" : ", ") + std::to_string(dims.d[i]);
    }
    return "(" + text + ")";
}

std::string wrong_type(NvDsInferDataType found, NvDsInferDataType expected) {
    if (found == HALF) {
        return "is of type HALF; build the engine strongly typed, as README.md says";
    }
    return expected == INT32 ? "has another type than INT32" : "has another type than FLOAT";
}

// Returns the content of the layer `name`, or null after saying what is wrong with it. `rows` is the number of rows
// that it must have; 0 takes what is there.
const void* content_of(const std::vector<NvDsInferLayerInfo>& layers, const char* name, NvDsInferDataType type,
                       unsigned int columns, unsigned int& rows) {
    const NvDsInferLayerInfo* layer = find_layer(layers, name);
    std::string problem;
    if (layer == nullptr) {
        problem = "is missing; is this the engine of another model?";
    } else if (layer->buffer == nullptr) {
        problem = "has no content on the host";
    } else if (layer->dataType != type) {
        problem = wrong_type(layer->dataType, type);
    } else if (layer->inferDims.numDims != (columns == 1 ? 1 : 2) || layer->inferDims.d[0] == 0 ||
               (columns != 1 && layer->inferDims.d[1] != columns)) {
        problem = "has dimensions " + to_text(layer->inferDims) + ", expected " + (columns == 1 ? "(N)" : "(N, 4)");
    } else if (rows != 0 && layer->inferDims.d[0] != rows) {
        problem = "has dimensions " + to_text(layer->inferDims) + ", but the outputs before it have " +
                  std::to_string(rows) + " rows";
    }
    if (!problem.empty()) {
        fail(name, problem);
        return nullptr;
    }
    rows = layer->inferDims.d[0];
    return layer->buffer;
}

bool read_outputs(const std::vector<NvDsInferLayerInfo>& layers, Outputs& found) {
    found.rows = 0;
    found.labels = static_cast<const std::int32_t*>(content_of(layers, "labels", INT32, 1, found.rows));
    if (found.labels == nullptr) {
        return false;
    }
    found.boxes = static_cast<const float*>(content_of(layers, "boxes", FLOAT, kCorners, found.rows));
    if (found.boxes == nullptr) {
        return false;
    }
    found.scores = static_cast<const float*>(content_of(layers, "scores", FLOAT, 1, found.rows));
    return found.scores != nullptr;
}

bool all_finite(const float* values, unsigned int count) {
    return std::all_of(values, values + count, [](float value) { return std::isfinite(value); });
}

float pixels(float share, unsigned int side) {
    return std::min(std::max(share, 0.0F), 1.0F) * static_cast<float>(side);
}

NvDsInferObjectDetectionInfo to_object(const Outputs& outputs, unsigned int row, const NvDsInferNetworkInfo& network) {
    const float* corners = outputs.boxes + static_cast<std::size_t>(row) * kCorners;
    NvDsInferObjectDetectionInfo object{};  // the fields that later versions add are zero
    object.classId = static_cast<unsigned int>(outputs.labels[row]);
    object.left = pixels(corners[0], network.width);
    object.top = pixels(corners[1], network.height);
    object.width = pixels(corners[2], network.width) - object.left;
    object.height = pixels(corners[3], network.height) - object.top;
    object.detectionConfidence = outputs.scores[row];
    return object;
}

bool is_wanted(std::int32_t label, float score, const NvDsInferParseDetectionParams& params) {
    if (label < 0) {
        return false;
    }
    const std::size_t index = static_cast<std::size_t>(label);
    const std::vector<float>& thresholds = params.perClassPreclusterThreshold;
    return index < params.numClassesConfigured && index < thresholds.size() && score >= thresholds[index];
}

}  // namespace

extern "C" bool NvDsInferParseRtdetr(std::vector<NvDsInferLayerInfo> const& outputLayersInfo,
                                     NvDsInferNetworkInfo const& networkInfo,
                                     NvDsInferParseDetectionParams const& detectionParams,
                                     std::vector<NvDsInferObjectDetectionInfo>& objectList) {
    Outputs outputs{};
    if (!read_outputs(outputLayersInfo, outputs)) {
        return false;
    }
    // NaN would look like "nothing found".
    if (!all_finite(outputs.scores, outputs.rows)) {
        return fail("scores", "has numbers that are not finite: the engine's precision is broken");
    }
    if (!all_finite(outputs.boxes, outputs.rows * kCorners)) {
        return fail("boxes", "has numbers that are not finite: the engine's precision is broken");
    }
    for (unsigned int row = 0; row < outputs.rows; ++row) {
        if (!is_wanted(outputs.labels[row], outputs.scores[row], detectionParams)) {
            continue;
        }
        const NvDsInferObjectDetectionInfo object = to_object(outputs, row, networkInfo);
        if (object.width > 0.0F && object.height > 0.0F) {  // what has no area can be neither cropped nor drawn
            objectList.push_back(object);
        }
    }
    return true;
}

CHECK_CUSTOM_PARSE_FUNC_PROTOTYPE(NvDsInferParseRtdetr);
