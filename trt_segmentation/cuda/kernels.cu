// SPDX-License-Identifier: Apache-2.0
// The fused kernels: image to input tensor, and network output to masks; and what comes before them
// where a camera gives no channels.
//
// kernels.ptx beside this file is what is shipped; after a change run
//   python3 -m trt_segmentation.cuda.compile
// Where a pixel comes from is in tables that tables.py makes; its types are repeated here. An
// index of -1 means that there is no source.

typedef unsigned char u8;
typedef unsigned int u32;
struct half { unsigned short bits; };

struct Tap { int first, second; float weight; };
struct FixedTap { int first, second, weight; };
struct Cell { int start, count; float first, middle, last; };

#ifdef __CUDACC__
static __device__ float to_float(half value)
{
  float result;
  asm("cvt.f32.f16 %0, %1;" : "=f"(result) : "h"(value.bits));
  return result;
}

static __device__ half to_half(float value)
{
  half result;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(result.bits) : "f"(value));
  return result;
}
#endif

static __device__ float to_float(float value) { return value; }
static __device__ void store(float * target, float value) { *target = value; }
static __device__ void store(half * target, float value) { *target = to_half(value); }

// tensor = pixel * scale + offset, channel by channel; `swap` if image and tensor order channels
// differently. Arguments that both input kernels share:
#define INPUT_ARGUMENTS(T, Table) \
  const u8 * __restrict__ image, T * __restrict__ tensor, \
  const Table * __restrict__ rows, const Table * __restrict__ columns, \
  int height, int width, int pitch, int swap, \
  float scale0, float scale1, float scale2, float offset0, float offset1, float offset2

// Linear and nearest, in the integer arithmetic of OpenCV's resize of uint8.
template<typename T>
static __device__ void input_linear(INPUT_ARGUMENTS(T, FixedTap))
{
  const int x = blockIdx.x * blockDim.x + threadIdx.x, y = blockIdx.y;
  if (x >= width) {
    return;
  }
  const FixedTap row = rows[y], column = columns[x];
  const bool inside = row.first >= 0 && column.first >= 0;
  const float scale[3] = {scale0, scale1, scale2}, offset[3] = {offset0, offset1, offset2};
  const u8 * top = image + (long long)(inside ? row.first : 0) * pitch;
  const u8 * bottom = image + (long long)(inside ? row.second : 0) * pitch;
  const int left = 3 * (inside ? column.first : 0), right = 3 * (inside ? column.second : 0);
  for (int i = 0; i < 3; i++) {
    const int c = swap ? 2 - i : i;
    const int upper = top[left + c] * (2048 - column.weight) + top[right + c] * column.weight;
    const int lower =
      bottom[left + c] * (2048 - column.weight) + bottom[right + c] * column.weight;
    const int pixel = ((((2048 - row.weight) * (upper >> 4)) >> 16) +
      ((row.weight * (lower >> 4)) >> 16) + 2) >> 2;
    store(
      tensor + ((long long)i * height + y) * width + x,
      inside ? pixel * scale[i] + offset[i] : 0.f);
  }
}

static __device__ float cell_weight(const Cell & cell, int i)
{
  return i == 0 ? cell.first : i == cell.count - 1 ? cell.last : cell.middle;
}

// The average over an area. As OpenCV does it, halves are rounded to even, but of 2x2 pixels up.
template<typename T>
static __device__ void input_area(INPUT_ARGUMENTS(T, Cell))
{
  const int x = blockIdx.x * blockDim.x + threadIdx.x, y = blockIdx.y;
  if (x >= width) {
    return;
  }
  const Cell row = rows[y], column = columns[x];
  const bool inside = row.start >= 0 && column.start >= 0;
  const float scale[3] = {scale0, scale1, scale2}, offset[3] = {offset0, offset1, offset2};
  float sum[3] = {0.f, 0.f, 0.f};
  for (int j = 0; inside && j < row.count; j++) {
    const u8 * line = image + (long long)(row.start + j) * pitch + 3 * column.start;
    float part[3] = {0.f, 0.f, 0.f};
    for (int i = 0; i < column.count; i++) {
      const float weight = cell_weight(column, i);
      for (int c = 0; c < 3; c++) {
        part[c] += line[3 * i + c] * weight;
      }
    }
    for (int c = 0; c < 3; c++) {
      sum[c] += part[c] * cell_weight(row, j);
    }
  }
  const bool four = row.middle == .5f && column.middle == .5f;
  for (int i = 0; i < 3; i++) {
    const float average = swap ? sum[2 - i] : sum[i];
    const float pixel = four ? floorf(average + .5f) : rintf(average);
    store(
      tensor + ((long long)i * height + y) * width + x,
      inside ? pixel * scale[i] + offset[i] : 0.f);
  }
}

// `palette` has, for each channel, its train id in the lowest byte and blue, green and red above;
// entry 256 is for pixels that the network did not see. A mask that is not wanted is null. `broken`
// is set to 1 if a logit is not finite: nan compares as false, so the mask would be of the first
// class, which is road. Each thread makes four pixels in each of `repeat` rows. Arguments that all
// output kernels share:
#define OUTPUT_ARGUMENTS(T) \
  const T * __restrict__ output, const u32 * __restrict__ palette, \
  const Tap * __restrict__ rows, const Tap * __restrict__ columns, \
  u8 * __restrict__ classes, u8 * __restrict__ color, u8 * __restrict__ confidence, \
  int * broken, int height, int width, int repeat, int channels, \
  int output_height, int output_width

static __device__ void write_four(
  const u32 * entry, const u32 * lead, u8 * classes, u8 * color, u8 * confidence,
  int x, int y, int width)
{
  const long long at = (long long)y * width + x;
  if ((width & 3) == 0) {
    if (classes) {
      *reinterpret_cast<u32 *>(classes + at) = (entry[0] & 255) | (entry[1] & 255) << 8 |
        (entry[2] & 255) << 16 | entry[3] << 24;
    }
    if (color) {
      u32 * target = reinterpret_cast<u32 *>(color + 3 * at);
      target[0] = entry[0] >> 8 | (entry[1] & 0xff00) << 16;
      target[1] = entry[1] >> 16 | (entry[2] & 0xffff00) << 8;
      target[2] = entry[2] >> 24 | (entry[3] & 0xffffff00);
    }
    if (confidence) {
      *reinterpret_cast<u32 *>(confidence + at) =
        lead[0] | lead[1] << 8 | lead[2] << 16 | lead[3] << 24;
    }
    return;
  }
  for (int k = 0; k < 4 && x + k < width; k++) {
    if (classes) {
      classes[at + k] = entry[k];
    }
    if (color) {
      color[3 * (at + k)] = entry[k] >> 8;
      color[3 * (at + k) + 1] = entry[k] >> 16;
      color[3 * (at + k) + 2] = entry[k] >> 24;
    }
    if (confidence) {
      confidence[at + k] = lead[k];
    }
  }
}

template<typename T>
struct alignas(4 * sizeof(T)) Four { T value[4]; };

// The best and the second best channel of four pixels, as far as channels were looked at.
struct Ranking
{
  int channel[4];
  float best[4], second[4];
  float sum;  // stays 0, or becomes nan if a logit is not finite
};

static __device__ Ranking unranked()
{
  const float lowest = -3.4e38f;
  return {
    {0, 0, 0, 0}, {lowest, lowest, lowest, lowest}, {lowest, lowest, lowest, lowest}, 0.f};
}

// Without branches, which pixels would take differently.
static __device__ void rank(Ranking & ranking, int channel, const float * value)
{
  for (int k = 0; k < 4; k++) {
    ranking.sum += value[k] * 0.f;
    ranking.second[k] = fmaxf(ranking.second[k], fminf(ranking.best[k], value[k]));
    ranking.channel[k] = value[k] > ranking.best[k] ? channel : ranking.channel[k];
    ranking.best[k] = fmaxf(ranking.best[k], value[k]);
  }
}

// Each pixel is a logit. `neighbours`: the four are so in memory too, and can be read at once.
template<typename T>
static __device__ void rank_single(
  const T * output, const Tap & row, const Tap * column, int channels, long long plane, int width,
  bool neighbours, Ranking & ranking)
{
  const T * line = output + (long long)row.first * width;
  float value[4];
  if (neighbours) {
#pragma unroll 8
    for (int c = 0; c < channels; c++, line += plane) {
      const Four<T> four = *reinterpret_cast<const Four<T> *>(line + column[0].first);
      for (int k = 0; k < 4; k++) {
        value[k] = to_float(four.value[k]);
      }
      rank(ranking, c, value);
    }
    return;
  }
#pragma unroll 4
  for (int c = 0; c < channels; c++, line += plane) {
    for (int k = 0; k < 4; k++) {
      value[k] = to_float(line[column[k].first]);
    }
    rank(ranking, c, value);
  }
}

template<typename T>
static __device__ float between(const T * top, const T * bottom, int column, float weight)
{
  const float upper = to_float(top[column]);
  return upper + (to_float(bottom[column]) - upper) * weight;
}

// Each pixel lies between four logits. Where the network's stride is 2 or more, three columns of
// logits serve all four pixels, so each column is interpolated once.
template<typename T>
static __device__ void rank_linear(
  const T * output, const Tap & row, const Tap * column, int channels, long long plane, int width,
  Ranking & ranking)
{
  const T * top = output + (long long)row.first * width;
  const T * bottom = output + (long long)row.second * width;
  const int start = column[0].first;
  bool three = true;
  float weight[4][3];
  for (int k = 0; k < 4; k++) {
    three = three && column[k].first >= start && column[k].second <= start + 2;
    for (int i = 0; i < 3; i++) {
      weight[k][i] = (column[k].first == start + i ? 1 - column[k].weight : 0.f) +
        (column[k].second == start + i ? column[k].weight : 0.f);
    }
  }
  float value[4];
  if (three) {
    // Beyond the last column the weight is 0, but what is read must exist.
    const int middle = start + 1 < width ? start + 1 : start;
    const int end = start + 2 < width ? start + 2 : start;
#pragma unroll 4
    for (int c = 0; c < channels; c++, top += plane, bottom += plane) {
      const float a = between(top, bottom, start, row.weight);
      const float b = between(top, bottom, middle, row.weight);
      const float d = between(top, bottom, end, row.weight);
      for (int k = 0; k < 4; k++) {
        value[k] = a * weight[k][0] + b * weight[k][1] + d * weight[k][2];
      }
      rank(ranking, c, value);
    }
    return;
  }
#pragma unroll 2
  for (int c = 0; c < channels; c++, top += plane, bottom += plane) {
    for (int k = 0; k < 4; k++) {
      const float left = between(top, bottom, column[k].first, row.weight);
      const float right = between(top, bottom, column[k].second, row.weight);
      value[k] = left + (right - left) * column[k].weight;
    }
    rank(ranking, c, value);
  }
}

template<typename T, bool LINEAR>
static __device__ void masks_of_logits(OUTPUT_ARGUMENTS(T))
{
  const int x = 4 * (blockIdx.x * blockDim.x + threadIdx.x);
  if (x >= width) {
    return;
  }
  Tap column[4];
  bool seen[4];
  for (int k = 0; k < 4; k++) {
    column[k] = columns[x + k < width ? x + k : width - 1];
    seen[k] = column[k].first >= 0;
  }
  // Pixels that the network did not see are given another's source, and no result.
  for (int k = 0; k < 4; k++) {
    for (int other = 0; other < 4 && column[k].first < 0; other++) {
      column[k] = column[other];
    }
  }
  const bool neighbours = column[1].first == column[0].first + 1 &&
    column[2].first == column[0].first + 2 && column[3].first == column[0].first + 3 &&
    ((column[0].first | output_width) & 3) == 0;
  const long long plane = (long long)output_height * output_width;
  u32 entry[4], lead[4];
  Tap before = {-2, -2, 0.f};
  for (int i = 0, y = blockIdx.y * repeat; i < repeat && y < height; i++, y++) {
    const Tap row = rows[y];
    // An image that is larger than the network's plane has equal rows; one serves all.
    if (row.first != before.first || row.second != before.second || row.weight != before.weight) {
      before = row;
      Ranking ranking = unranked();
      if (row.first >= 0 && column[0].first >= 0) {
        if (LINEAR) {
          rank_linear<T>(output, row, column, channels, plane, output_width, ranking);
        } else {
          rank_single<T>(
            output, row, column, channels, plane, output_width, neighbours, ranking);
        }
      }
      if (!(ranking.sum == 0.f)) {
        *broken = 1;
      }
      for (int k = 0; k < 4; k++) {
        const bool inside = row.first >= 0 && seen[k];
        entry[k] = palette[inside ? ranking.channel[k] : 256];
        // (p1 - p2) / (p1 + p2) of softmax is tanh of half the difference of the logits.
        lead[k] = confidence && inside ?
          (u32)rintf(255.f * tanhf((ranking.best[k] - ranking.second[k]) / 2)) : 0;
      }
    }
    write_four(entry, lead, classes, color, confidence, x, y, width);
  }
}

template<typename T>
static __device__ void masks_of_ids(OUTPUT_ARGUMENTS(T))
{
  const int x = 4 * (blockIdx.x * blockDim.x + threadIdx.x);
  if (x >= width) {
    return;
  }
  for (int i = 0, y = blockIdx.y * repeat; i < repeat && y < height; i++, y++) {
    const int source_row = rows[y].first;
    u32 entry[4], lead[4];
    for (int k = 0; k < 4; k++) {
      const int source_column = columns[x + k < width ? x + k : width - 1].first;
      const bool inside = source_row >= 0 && source_column >= 0;
      long long id = 0;
      if (inside) {
        id = output[(long long)source_row * output_width + source_column];
      }
      entry[k] = palette[!inside ? 256 : id < 0 || id > 255 ? 255 : (int)id];
      lead[k] = inside ? 255 : 0;
    }
    write_four(entry, lead, classes, color, confidence, x, y, width);
  }
}

#define INPUT(name, body, T, Table) \
  extern "C" __global__ void name(INPUT_ARGUMENTS(T, Table)) \
  { \
    body( \
      image, tensor, rows, columns, height, width, pitch, swap, scale0, scale1, scale2, \
      offset0, offset1, offset2); \
  }

INPUT(input_linear_float32, input_linear<float>, float, FixedTap)
INPUT(input_linear_float16, input_linear<half>, half, FixedTap)
INPUT(input_area_float32, input_area<float>, float, Cell)
INPUT(input_area_float16, input_area<half>, half, Cell)

#define OUTPUT(name, body, T) \
  extern "C" __global__ void name(OUTPUT_ARGUMENTS(T)) \
  { \
    body( \
      output, palette, rows, columns, classes, color, confidence, broken, height, width, \
      repeat, channels, output_height, output_width); \
  }

OUTPUT(linear_logits_float32, (masks_of_logits<float, true>), float)
OUTPUT(linear_logits_float16, (masks_of_logits<half, true>), half)
OUTPUT(nearest_logits_float32, (masks_of_logits<float, false>), float)
OUTPUT(nearest_logits_float16, (masks_of_logits<half, false>), half)
OUTPUT(ids_uint8, masks_of_ids<u8>, u8)
OUTPUT(ids_int32, masks_of_ids<int>, int)
OUTPUT(ids_int64, masks_of_ids<long long>, long long)

// What a camera gives becomes BGR, bit for bit as OpenCV's cvtColor does it; each thread makes one
// pixel. `order`: of the bytes, in each kernel's own words. Arguments that all conversions share:
#define CONVERT_ARGUMENTS \
  const u8 * __restrict__ raw, u8 * __restrict__ bgr, int height, int width, int order

static __device__ u8 to_u8(int value) { return value < 0 ? 0 : value > 255 ? 255 : value; }

// ITU-R BT.601 of limited range in 2^20ths (imgproc/src/color_yuv.simd.hpp).
static __device__ void write_yuv(u8 * bgr, int y, int u, int v)
{
  const int luma = (y > 16 ? y - 16 : 0) * 1220542 + (1 << 19);
  u -= 128;
  v -= 128;
  bgr[0] = to_u8((luma + 2116026 * u) >> 20);
  bgr[1] = to_u8((luma - 409993 * u - 852492 * v) >> 20);
  bgr[2] = to_u8((luma + 1673527 * v) >> 20);
}

// Two pixels in four bytes; `order`: where the first one's luma is, 0 (YUYV) or 1 (UYVY).
extern "C" __global__ void convert_yuv422(CONVERT_ARGUMENTS)
{
  const int x = blockIdx.x * blockDim.x + threadIdx.x, y = blockIdx.y;
  if (x >= width) {
    return;
  }
  const long long at = (long long)y * width + x;
  const u8 * pair = raw + 2 * (at - (x & 1));
  write_yuv(bgr + 3 * at, pair[order + 2 * (x & 1)], pair[1 - order], pair[3 - order]);
}

// A plane of luma, then one of chroma for each 2x2 pixels; `order`: where its U is, 0 (NV12) or 1.
extern "C" __global__ void convert_nv(CONVERT_ARGUMENTS)
{
  const int x = blockIdx.x * blockDim.x + threadIdx.x, y = blockIdx.y;
  if (x >= width) {
    return;
  }
  const long long at = (long long)y * width + x;
  const u8 * chroma = raw + (long long)(height + y / 2) * width + (x & ~1);
  write_yuv(bgr + 3 * at, raw[at], chroma[order], chroma[1 - order]);
}

// One color a pixel, in tiles of 2x2; `order`: which of a tile is red, 2 * row + column. Others are
// the average of the neighbours that have them, and the border is what is beside it, as in
// imgproc/src/demosaicing.cpp; so nothing is left of an image that is all border.
extern "C" __global__ void convert_bayer(CONVERT_ARGUMENTS)
{
  const int x = blockIdx.x * blockDim.x + threadIdx.x, y = blockIdx.y;
  if (x >= width) {
    return;
  }
  u8 * target = bgr + 3 * ((long long)y * width + x);
  if (height < 3 || width < 3) {
    target[0] = target[1] = target[2] = 0;
    return;
  }
  const int row = y < 1 ? 1 : y > height - 2 ? height - 2 : y;
  const int column = x < 1 ? 1 : x > width - 2 ? width - 2 : x;
  const u8 * here = raw + (long long)row * width + column;
  const u8 * above = here - width;
  const u8 * below = here + width;
  const bool red_row = (row & 1) == order >> 1, red_column = (column & 1) == (order & 1);
  int near = *here, far, green = *here;  // the row's color that is not green, and the other rows'
  if (red_row == red_column) {
    far = (above[-1] + above[1] + below[-1] + below[1] + 2) >> 2;
    green = (here[-1] + here[1] + *above + *below + 2) >> 2;
  } else {
    near = (here[-1] + here[1] + 1) >> 1;
    far = (*above + *below + 1) >> 1;
  }
  target[0] = red_row ? far : near;
  target[1] = green;
  target[2] = red_row ? near : far;
}

// The planes of a JPEG picture, one behind the other: luma, and where it has colors Cb and Cr.
// `order`: 0 if these have every pixel, 1 every second column (4:2:2), 3 and every second row
// (4:2:0); 4 for gray. What is between the samples is weighted 3 to 1, as libjpeg-turbo does it
// (jdsample.c), and so are its integers (jdcolor.c).
static __device__ int chroma_at(const u8 * plane, int height, int width, int y, int x, int order)
{
  if (!order) {
    return plane[(long long)y * width + x];
  }
  const int column = x >> 1, odd = x & 1;
  int beside = odd ? column + 1 : column - 1;
  beside = beside < 0 ? 0 : beside > width - 1 ? width - 1 : beside;
  if (order == 1) {
    const u8 * line = plane + (long long)y * width;
    return (3 * line[column] + line[beside] + 1 + odd) >> 2;
  }
  const int row = y >> 1;
  int next = y & 1 ? row + 1 : row - 1;
  next = next < 0 ? 0 : next > height - 1 ? height - 1 : next;
  const u8 * line = plane + (long long)row * width;
  const u8 * other = plane + (long long)next * width;
  return (3 * (3 * line[column] + other[column]) + 3 * line[beside] + other[beside] + 8 - odd) >> 4;
}

extern "C" __global__ void convert_jpeg(CONVERT_ARGUMENTS)
{
  const int x = blockIdx.x * blockDim.x + threadIdx.x, y = blockIdx.y;
  if (x >= width) {
    return;
  }
  const long long at = (long long)y * width + x;
  const int luma = raw[at];
  u8 * target = bgr + 3 * at;
  if (order == 4) {
    target[0] = target[1] = target[2] = luma;
    return;
  }
  const int columns = order & 1 ? (width + 1) / 2 : width;
  const int rows = order & 2 ? (height + 1) / 2 : height;
  const u8 * plane = raw + (long long)height * width;
  const int cb = chroma_at(plane, rows, columns, y, x, order) - 128;
  const int cr = chroma_at(
    plane + (long long)rows * columns, rows, columns, y, x, order) - 128;
  target[0] = to_u8(luma + ((116130 * cb + (1 << 15)) >> 16));
  target[1] = to_u8(luma + ((-22554 * cb - 46802 * cr + (1 << 15)) >> 16));
  target[2] = to_u8(luma + ((91881 * cr + (1 << 15)) >> 16));
}
