// SPDX-License-Identifier: Apache-2.0
// kernels.cu compiled for the CPU: each launch becomes a loop over its threads.
#include <cmath>
#include <cstring>

static struct { int x, y; } threadIdx, blockIdx, blockDim;
#define __device__
#define __global__
#define __restrict__ __restrict

struct half;
static float to_float(half value);
static half to_half(float value);

#include "../../trt_segmentation/cuda/kernels.cu"

static float to_float(half value)
{
  _Float16 number;
  std::memcpy(&number, &value, sizeof number);
  return number;
}

static half to_half(float value)
{
  const _Float16 number = value;
  half result;
  std::memcpy(&result, &number, sizeof result);
  return result;
}

#define FOR_EACH_THREAD \
  blockDim.x = threads; \
  for (blockIdx.y = 0; blockIdx.y < grid_y; blockIdx.y++) \
    for (blockIdx.x = 0; blockIdx.x < grid_x; blockIdx.x++) \
      for (threadIdx.x = 0; threadIdx.x < threads; threadIdx.x++)

#define RUN_INPUT(name, T, Table) \
  extern "C" void run_ ## name(int grid_x, int grid_y, int threads, INPUT_ARGUMENTS(T, Table)) \
  { \
    FOR_EACH_THREAD \
    name( \
      image, tensor, rows, columns, height, width, pitch, swap, scale0, scale1, scale2, \
      offset0, offset1, offset2); \
  }

#define RUN_OUTPUT(name, T) \
  extern "C" void run_ ## name(int grid_x, int grid_y, int threads, OUTPUT_ARGUMENTS(T)) \
  { \
    FOR_EACH_THREAD \
    name( \
      output, palette, rows, columns, classes, color, confidence, broken, height, width, \
      repeat, channels, output_height, output_width); \
  }

#define RUN_CONVERT(name) \
  extern "C" void run_ ## name(int grid_x, int grid_y, int threads, CONVERT_ARGUMENTS) \
  { \
    FOR_EACH_THREAD \
    name(raw, bgr, height, width, order); \
  }

RUN_CONVERT(convert_yuv422)
RUN_CONVERT(convert_nv)
RUN_CONVERT(convert_bayer)
RUN_CONVERT(convert_jpeg)
RUN_INPUT(input_linear_float32, float, FixedTap)
RUN_INPUT(input_linear_float16, half, FixedTap)
RUN_INPUT(input_area_float32, float, Cell)
RUN_INPUT(input_area_float16, half, Cell)
RUN_OUTPUT(linear_logits_float32, float)
RUN_OUTPUT(linear_logits_float16, half)
RUN_OUTPUT(nearest_logits_float32, float)
RUN_OUTPUT(nearest_logits_float16, half)
RUN_OUTPUT(ids_uint8, u8)
RUN_OUTPUT(ids_int32, int)
RUN_OUTPUT(ids_int64, long long)
