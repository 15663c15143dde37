// For tests: a C interface to an output parser, so that Python can call it as nvinfer does.

#include <dlfcn.h>

#include <cstdio>
#include <cstring>
#include <vector>

#include "nvdsinfer_custom_impl.h"

struct Layer {
    const char* name;
    int type;
    unsigned int dims_count;
    unsigned int dims[NVDSINFER_MAX_DIMS];
    void* content;
};

struct Object {
    unsigned int label;
    float left, top, width, height, score, rotation;
};

namespace {

// Holds what was there before, so that a field that the parser leaves alone is seen.
std::vector<NvDsInferObjectDetectionInfo> dirty_memory() {
    std::vector<NvDsInferObjectDetectionInfo> objects(512);
    std::memset(static_cast<void*>(objects.data()), 0x55, objects.size() * sizeof(objects[0]));
    objects.clear();
    return objects;
}

NvDsInferLayerInfo to_info(const Layer& layer) {
    NvDsInferLayerInfo info{};
    info.dataType = static_cast<NvDsInferDataType>(layer.type);
    info.inferDims.numDims = layer.dims_count;
    info.inferDims.numElements = 1;
    for (unsigned int i = 0; i < layer.dims_count; ++i) {
        info.inferDims.d[i] = layer.dims[i];
        info.inferDims.numElements *= layer.dims[i];
    }
    info.layerName = layer.name;
    info.buffer = layer.content;
    return info;
}

}  // namespace

// Returns the number of objects, -1 where the parser failed, -2 where it can't be loaded, and -3 where it failed and
// left objects behind.
extern "C" int call_parser(const char* library, const char* function, const Layer* layers, unsigned int layer_count,
                           unsigned int width, unsigned int height, const float* thresholds, unsigned int classes,
                           Object* found) {
    void* handle = dlopen(library, RTLD_LAZY);
    void* symbol = handle == nullptr ? nullptr : dlsym(handle, function);
    if (symbol == nullptr) {
        std::fprintf(stderr, "%s\n", dlerror());
        return -2;
    }
    NvDsInferParseCustomFunc parse = nullptr;
    std::memcpy(&parse, &symbol, sizeof(parse));
    std::vector<NvDsInferLayerInfo> infos;
    for (unsigned int i = 0; i < layer_count; ++i) {
        infos.push_back(to_info(layers[i]));
    }
    NvDsInferParseDetectionParams params{};
    params.numClassesConfigured = classes;
    params.perClassPreclusterThreshold.assign(thresholds, thresholds + classes);
    std::vector<NvDsInferObjectDetectionInfo> objects = dirty_memory();
    if (!parse(infos, NvDsInferNetworkInfo{width, height, 3}, params, objects)) {
        return objects.empty() ? -1 : -3;
    }
    for (std::size_t i = 0; i < objects.size(); ++i) {
        const NvDsInferObjectDetectionInfo& object = objects[i];
        float rotation = 0.0F;
#ifndef BEFORE_DEEPSTREAM_8
        rotation = object.rotation_angle;
#endif
        found[i] = {object.classId, object.left,  object.top, object.width, object.height,
                    object.detectionConfidence, rotation};
    }
    return static_cast<int>(objects.size());
}
