// For tests: the declarations of DeepStream's nvdsinfer.h that an output parser sees, written from its API reference
// (NvDsInferDims, NvDsInferLayerInfo, NvDsInferNetworkInfo, NvDsInferObjectDetectionInfo; fields in their order).
// It is not NVIDIA's header, and is never given to users.

#pragma once

constexpr unsigned int NVDSINFER_MAX_DIMS = 8;

struct NvDsInferDims {
    unsigned int numDims;
    unsigned int d[NVDSINFER_MAX_DIMS];
    unsigned int numElements;
};

enum NvDsInferDataType { FLOAT = 0, HALF = 1, INT8 = 2, INT32 = 3, INT64 = 4, UINT8 = 5 };

struct NvDsInferLayerInfo {
    NvDsInferDataType dataType;
    union {
        NvDsInferDims inferDims;
        NvDsInferDims dims;
    };
    int bindingIndex;
    const char* layerName;
    void* buffer;
    int isInput;
};

struct NvDsInferNetworkInfo {
    unsigned int width;
    unsigned int height;
    unsigned int channels;
};

struct NvDsInferObjectDetectionInfo {
    unsigned int classId;
    float left;
    float top;
    float width;
    float height;
    float detectionConfidence;
#ifndef BEFORE_DEEPSTREAM_8
    float rotation_angle;
#endif
};

typedef NvDsInferObjectDetectionInfo NvDsInferParseObjectInfo;
