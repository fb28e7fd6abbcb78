// Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
// Mean field on a GPU. An iteration is one pass over the pixels (messages, scores, softmax) and the
// filters of lattice.h; the host waits for nothing.
#pragma once

#include <cmath>
#include <limits>

#include "dense_crf/device/lattice.h"

namespace wsis_d2 {
namespace crf {

// (L, H, W) -> [pixel][label]; labels beyond the last get `empty`.
template <typename T, int W>
struct ToPixels {
  const T* volume;
  T* values;
  int64_t pixels;
  int labels, parts;
  T empty;

  WSIS_DEVICE void operator()(int64_t pixel) const {
    for (int part = 0; part < parts; ++part) {
      Pack<T, W> pack;
      for (int i = 0; i < W; ++i) {
        const int label = part * W + i;
        pack.v[i] = label < labels ? volume[label * pixels + pixel] : empty;
      }
      pack.store(values + (pixel * parts + part) * W);
    }
  }
};

// [pixel][label] -> (L, H, W)
template <typename T>
struct ToVolume {
  const T* values;
  T* volume;
  int64_t pixels;
  int labels, row_width;

  WSIS_DEVICE void operator()(int64_t pixel) const {
    for (int label = 0; label < labels; ++label) {
      volume[label * pixels + pixel] = values[pixel * row_width + label];
    }
  }
};

// A block's pixels: 16 or 8 wide, where so many fit, as they share vertices.
struct Patches {
  BlockShape shape;
  int wide, tall, shift, across;
  int64_t count;
  Patches(int height, int width, int parts) : shape(block_shape(parts)) {
    shift = shape.y >= 128 ? 4 : 3;
    wide = std::min(1 << shift, shape.y);
    tall = shape.y / wide;
    across = (width + wide - 1) / wide;
    count = int64_t(across) * ((height + tall - 1) / tall);
  }
};

// The messages of both kernels to a block's pixels.
template <typename T, int W>
struct Messages {
  DeviceLattice<T> lattice;
  DevicePlan<T> plan;
  const T* vertices;  // nullptr: without the lattice
  const T* grid;      // nullptr: without the spatial kernel
  uint32_t row_width;
  int parts, wide, tall, shift, across;
  bool norm;

  // This thread's pixel; false where it has none.
  WSIS_DEVICE bool find(const Place& place, int& px, int& py) const {
    const int down = place.block / across;
    px = (place.block - down * across) * wide + (place.y & ((1 << shift) - 1));
    py = down * tall + (place.y >> shift);
    return place.y < wide * tall && px < lattice.width && py < lattice.height;
  }
  WSIS_DEVICE uint64_t row(uint32_t pixel, int part) const {
    return static_cast<uint64_t>(pixel) * row_width + part * W;
  }
  WSIS_DEVICE Pack<T, W> bilateral(uint32_t pixel, int part) const {
    if (vertices == nullptr) return Pack<T, W>::zero();
    return read_lattice<T, W>(lattice, vertices, row_width, pixel, part, norm);
  }
  WSIS_DEVICE Pack<T, W> spatial(int px, int py, int part) const {
    if (grid == nullptr) return Pack<T, W>::zero();
    return read_grid<T, W>(plan, grid, row_width, px, py, part);
  }
};

// Softmax of the scores plus the messages -> marginals. A pixel's threads, side by side in a block,
// meet for the largest score and for the sum.
template <typename T, typename S, int W>
struct Softmax {
  static constexpr int kPhases = 3;
  struct Shared {
    T highest[kThreads], sum[kThreads];
  };
  struct Local {
    Pack<T, W> first;  // of the thread's first part; further ones (beyond 1024 labels) come again
    T highest;
    int px, py;
    bool here;
  };
  Messages<T, W> messages;
  const T* scores;  // [pixel][label]
  S* marginals;

  WSIS_DEVICE Pack<T, W> value(const Local& local, int part) const {
    const uint32_t pixel = static_cast<uint32_t>(local.py) * messages.lattice.width + local.px;
    Pack<T, W> sum = Pack<T, W>::load(scores + messages.row(pixel, part));
    sum.add(messages.bilateral(pixel, part));
    sum.add(messages.spatial(local.px, local.py, part));
    return sum;
  }

  template <int PHASE>
  WSIS_DEVICE void phase(const Place& place, Local& local, Shared& shared) const {
    T* side_by_side = (PHASE < 2 ? shared.highest : shared.sum) + place.y * place.width;
    if constexpr (PHASE == 0) {
      local.here = messages.find(place, local.px, local.py);
      if (!local.here) return;
      T highest = -std::numeric_limits<T>::infinity();
      for (int part = place.x; part < messages.parts; part += place.width) {
        const Pack<T, W> v = value(local, part);
        if (part == place.x) local.first = v;
        for (int i = 0; i < W; ++i) highest = v.v[i] > highest ? v.v[i] : highest;
      }
      side_by_side[place.x] = highest;
    }
    if constexpr (PHASE == 1) {
      if (!local.here) return;
      T highest = side_by_side[0];
      for (int i = 1; i < place.width; ++i) {
        highest = side_by_side[i] > highest ? side_by_side[i] : highest;
      }
      T sum = 0;
      for (int part = place.x; part < messages.parts; part += place.width) {
        Pack<T, W> v = part == place.x ? local.first : value(local, part);
        for (int i = 0; i < W; ++i) {
          v.v[i] = std::exp(v.v[i] - highest);
          sum += v.v[i];
        }
        if (part == place.x) local.first = v;
      }
      local.highest = highest;
      shared.sum[place.thread()] = sum;
    }
    if constexpr (PHASE == 2) {
      if (!local.here) return;
      T sum = 0;
      for (int i = 0; i < place.width; ++i) sum += side_by_side[i];
      const T inverse = T(1) / sum;
      const uint32_t pixel = static_cast<uint32_t>(local.py) * messages.lattice.width + local.px;
      for (int part = place.x; part < messages.parts; part += place.width) {
        Pack<T, W> v = local.first;
        if (part != place.x) {
          v = value(local, part);
          for (int i = 0; i < W; ++i) v.v[i] = std::exp(v.v[i] - local.highest);
        }
        v.scale(inverse);
        v.store(marginals + messages.row(pixel, part));
      }
    }
  }
};

// The messages times `scale`, plus the scores where there are any -> (L, H, W).
template <typename T, int W>
struct Finish {
  static constexpr int kPhases = 1;
  struct Shared {};
  struct Local {};
  Messages<T, W> messages;
  const T* scores;  // (L, H, W), or nullptr
  T* volume;        // (L, H, W)
  T scale;
  int labels;

  template <int PHASE>
  WSIS_DEVICE void phase(const Place& place, Local&, Shared&) const {
    int px, py;
    if (!messages.find(place, px, py)) return;
    const uint32_t pixel = static_cast<uint32_t>(py) * messages.lattice.width + px;
    for (int part = place.x; part < messages.parts; part += place.width) {
      Pack<T, W> sum = messages.bilateral(pixel, part);
      sum.add(messages.spatial(px, py, part));
      for (int i = 0; i < W; ++i) {
        const int label = part * W + i;
        if (label >= labels) break;
        const int64_t at = label * messages.lattice.pixels() + pixel;
        volume[at] = scores != nullptr ? scores[at] + sum.v[i] * scale : sum.v[i] * scale;
      }
    }
  }
};

// One iteration backwards. The messages are gradients h_b, h_s of the marginals q, before weights.
//   to_q = w_b h_b + w_s h_s;  incoming = q (to_q - <q, to_q>);  total += incoming
//   weight_grads[block] += sums of h_b q and of h_s q
// Marginals of 16 bits are brought back to a sum of 1 first: where one label has nearly all of
// it, what the others have left is what counts.
template <typename T, typename S, int W>
struct StepBack {
  static constexpr int kPhases = 4;
  static constexpr int kSums = 16;
  struct Shared {
    T bilateral[kThreads], spatial[kThreads], marginal[kThreads];  // by thread
    T of_bilateral[kThreads], of_spatial[kThreads];                // by the block's pixel
    double sums[2][kSums];
  };
  struct Local {
    Pack<T, W> to_q;
    int px, py;
    bool here;
    T weight_bilateral, weight_spatial;
  };
  Messages<T, W> messages;
  const S* marginals;
  T* incoming;
  T* total;
  double* weight_grads;
  Scalar<T> bilateral, spatial;

  WSIS_DEVICE uint32_t pixel(const Local& local) const {
    return static_cast<uint32_t>(local.py) * messages.lattice.width + local.px;
  }

  template <int PHASE>
  WSIS_DEVICE void phase(const Place& place, Local& local, Shared& shared) const {
    const int thread = place.thread(), first = place.y * place.width;
    if constexpr (PHASE == 0) {
      local.here = messages.find(place, local.px, local.py);
      T with_bilateral = 0, with_spatial = 0, marginal = 0;
      if (local.here) {
        local.weight_bilateral = bilateral.get();
        local.weight_spatial = spatial.get();
        for (int part = place.x; part < messages.parts; part += place.width) {
          const Pack<T, W> q = Pack<T, W>::load(marginals + messages.row(pixel(local), part));
          Pack<T, W> h = messages.bilateral(pixel(local), part);
          const Pack<T, W> s = messages.spatial(local.px, local.py, part);
          for (int i = 0; i < W; ++i) {
            with_bilateral += h.v[i] * q.v[i];
            with_spatial += s.v[i] * q.v[i];
            marginal += q.v[i];
          }
          h.scale(local.weight_bilateral);
          h.fma(s, local.weight_spatial);
          if (part == place.x) local.to_q = h;
          if (part != place.x) h.store(incoming + messages.row(pixel(local), part));
        }
      }
      shared.bilateral[thread] = with_bilateral;
      shared.spatial[thread] = with_spatial;
      shared.marginal[thread] = marginal;
    }
    if constexpr (PHASE == 1) {
      T with_bilateral = 0, with_spatial = 0, marginal = 0;
      for (int i = first; i < first + place.width; ++i) {
        with_bilateral += shared.bilateral[i];
        with_spatial += shared.spatial[i];
        marginal += shared.marginal[i];
      }
      const T whole = local.here ? T(1) / marginal : T(0);
      with_bilateral *= whole;
      with_spatial *= whole;
      if (place.x == 0) {
        shared.of_bilateral[place.y] = with_bilateral;
        shared.of_spatial[place.y] = with_spatial;
      }
      if (!local.here) return;
      const T mean = local.weight_bilateral * with_bilateral + local.weight_spatial * with_spatial;
      for (int part = place.x; part < messages.parts; part += place.width) {
        const uint64_t at = messages.row(pixel(local), part);
        const Pack<T, W> q = Pack<T, W>::load(marginals + at);
        Pack<T, W> g = part == place.x ? local.to_q : Pack<T, W>::load(incoming + at);
        for (int i = 0; i < W; ++i) g.v[i] = q.v[i] * whole * (g.v[i] - mean);
        g.store(incoming + at);
        g.add(Pack<T, W>::load(total + at));
        g.store(total + at);
      }
    }
    // The block's sums, in an order that does not depend on when threads run.
    if constexpr (PHASE == 2) {
      if (thread >= kSums) return;
      double sums[2] = {0, 0};
      for (int i = thread; i < place.height; i += kSums) {
        sums[0] += static_cast<double>(shared.of_bilateral[i]);
        sums[1] += static_cast<double>(shared.of_spatial[i]);
      }
      shared.sums[0][thread] = sums[0];
      shared.sums[1][thread] = sums[1];
    }
    if constexpr (PHASE == 3) {
      if (thread >= 2) return;
      double sum = 0;
      const int held = place.width * place.height < kSums ? place.width * place.height : kSums;
      for (int i = 0; i < held; ++i) sum += shared.sums[thread][i];
      weight_grads[2 * static_cast<int64_t>(place.block) + thread] += sum;
    }
  }
};

// The t-th kept marginals.
template <typename S>
S* kept(const at::Tensor& saved, int64_t t) {
  return static_cast<S*>(saved.data_ptr()) + t * saved.size(1);
}

// One image's mean field: buffers and the passes over them.
template <typename T, int W>
class DeviceEngine {
 public:
  using S = typename Kept<T>::type;

  DeviceEngine(const DeviceLattice<T>& lattice, const OwnedPlan<T>& plan, int64_t labels,
               bool bilateral, bool spatial, bool transpose, const at::TensorOptions& options)
      : lattice_(lattice),
        plan_(plan),
        labels_(labels),
        transpose_(transpose),
        patches_(lattice.height, lattice.width, parts()),
        filtered_(make_filtered<T>(lattice, plan.plan, labels, bilateral, spatial, options)) {}

  int64_t width() const { return row_width(labels_); }
  int parts() const { return static_cast<int>(row_width(labels_) / W); }
  int64_t blocks() const { return patches_.count; }

  at::Tensor to_pixels(const at::Tensor& volume, T empty) const {
    at::Tensor values = at::empty({lattice_.pixels(), width()}, volume.options());
    launch(lattice_.pixels(),
           ToPixels<T, W>{volume.const_data_ptr<T>(), values.data_ptr<T>(), lattice_.pixels(),
                          static_cast<int>(labels_), parts(), empty});
    return values;
  }
  void to_volume(const at::Tensor& values, at::Tensor& volume) const {
    launch(lattice_.pixels(),
           ToVolume<T>{values.const_data_ptr<T>(), volume.data_ptr<T>(), lattice_.pixels(),
                       static_cast<int>(labels_), static_cast<int>(width())});
  }

  // Both kernels of values [pixel][label] times the factors: `messages` are of these then.
  template <typename V>
  void spread(const V* values, Scalar<T> bilateral, Scalar<T> spatial) {
    filter<T, V, W>(lattice_, plan_.plan, values, labels_, transpose_, bilateral, spatial,
                    filtered_);
  }
  // Marginals of the scores, with the messages where there are any.
  void softmax(const at::Tensor& scores, bool with_messages, S* marginals) const {
    launch_blocks(patches_.count, patches_.shape,
                  Softmax<T, S, W>{messages(with_messages), scores.const_data_ptr<T>(), marginals});
  }
  void finish(const T* scores, T* volume, T scale) const {
    launch_blocks(
        patches_.count, patches_.shape,
        Finish<T, W>{messages(true), scores, volume, scale, static_cast<int>(labels_)});
  }
  void step_back(const S* marginals, at::Tensor& incoming, at::Tensor& total,
                 at::Tensor& weight_grads, Scalar<T> bilateral, Scalar<T> spatial) const {
    launch_blocks(patches_.count, patches_.shape,
                  StepBack<T, S, W>{messages(true), marginals, incoming.data_ptr<T>(),
                                    total.data_ptr<T>(), weight_grads.data_ptr<double>(),
                                    bilateral, spatial});
  }

 private:
  Messages<T, W> messages(bool any) const {
    return {lattice_,
            plan_.plan,
            any ? filtered_.vertices() : nullptr,
            any ? filtered_.cells() : nullptr,
            static_cast<uint32_t>(width()),
            parts(),
            patches_.wide,
            patches_.tall,
            patches_.shift,
            patches_.across,
            lattice_.normalization == kAfter && transpose_};
  }

  const DeviceLattice<T> lattice_;
  const OwnedPlan<T> plan_;
  const int64_t labels_;
  const bool transpose_;
  const Patches patches_;
  Filtered<T> filtered_;
};

// The score of a label that is not there: its marginal is 0 beside any finite ones.
template <typename T>
T nothing() {
  return -std::numeric_limits<T>::infinity();
}

template <typename T>
OwnedPlan<T> plan_for(const DeviceLattice<T>& lattice, const MeanFieldOptions& options,
                      bool transpose, const at::Tensor& like) {
  return make_device_plan<T>(lattice.height, lattice.width, options.gaussian_xy,
                             options.exact_spatial, lattice.normalization, transpose, like);
}

template <typename T, int W>
std::tuple<at::Tensor, at::Tensor> device_forward(const at::Tensor& scores_in,
                                                  const DeviceLattice<T>& lattice,
                                                  Scalar<T> bilateral, Scalar<T> spatial,
                                                  const MeanFieldOptions& options) {
  using S = typename Kept<T>::type;
  const at::Tensor scores = scores_in.contiguous();
  const int64_t labels = scores.size(0), every = options.save_every;
  const int64_t size = lattice.pixels() * row_width(labels);
  at::Tensor saved = at::empty({options.saved_count(), size}, scores.options().dtype(Kept<T>::kType));
  if (options.iterations == 0) return {scores.clone(), saved};
  DeviceEngine<T, W> engine(lattice, plan_for(lattice, options, false, scores), labels,
                            !bilateral.is_zero(), !spatial.is_zero(), false, scores.options());
  const at::Tensor start = engine.to_pixels(scores, nothing<T>());
  const at::Tensor own = every == 1 ? saved : at::empty({1, size}, saved.options());
  for (int64_t t = 0; t < options.iterations; ++t) {
    S* q = every > 0 && t % every == 0 ? kept<S>(saved, t / every) : kept<S>(own, 0);
    engine.softmax(start, t > 0, q);
    engine.spread(q, bilateral, spatial);
  }
  at::Tensor result = at::empty_like(scores);
  engine.finish(scores.const_data_ptr<T>(), result.data_ptr<T>(), T(1));
  return {result, saved};
}

// -> gradient of the scores; gradients of the two weights, float64 (2)
template <typename T, int W>
std::tuple<at::Tensor, at::Tensor> device_backward(const at::Tensor& grad_in,
                                                   const at::Tensor& saved,
                                                   const at::Tensor& scores,
                                                   const DeviceLattice<T>& lattice,
                                                   Scalar<T> bilateral, Scalar<T> spatial,
                                                   const MeanFieldOptions& options) {
  using S = typename Kept<T>::type;
  const at::Tensor grad = grad_in.contiguous();
  const int64_t labels = grad.size(0), every = options.save_every;
  const Scalar<T> one{nullptr, T(1)};
  DeviceEngine<T, W> engine(lattice, plan_for(lattice, options, true, grad), labels, true, true,
                            true, grad.options());
  at::Tensor incoming = engine.to_pixels(grad, T(0));
  at::Tensor total = incoming.clone();
  at::Tensor weight_grads =
      at::zeros({engine.blocks(), 2}, grad.options().dtype(at::kDouble));

  // Marginals of one stretch between kept ones, computed again where not all were kept.
  at::Tensor start, again;
  std::unique_ptr<DeviceEngine<T, W>> redo;
  if (every > 1) {
    redo = std::make_unique<DeviceEngine<T, W>>(
        lattice, plan_for(lattice, options, false, grad), labels, !bilateral.is_zero(),
        !spatial.is_zero(), false, grad.options());
    start = redo->to_pixels(scores.contiguous(), nothing<T>());
    again = at::empty({every - 1, saved.size(1)}, saved.options());
  }
  auto marginals = [&](int64_t t) {
    return t % every == 0 ? kept<S>(saved, t / every) : kept<S>(again, t % every - 1);
  };
  for (int64_t t = options.iterations - 1; t >= 0; --t) {
    const bool last = t == options.iterations - 1 || t % every == every - 1;
    if (t % every != 0 && last) {
      for (int64_t u = t / every * every; u < t; ++u) {
        redo->spread(marginals(u), bilateral, spatial);
        redo->softmax(start, true, marginals(u + 1));
      }
    }
    engine.spread(incoming.const_data_ptr<T>(), one, one);
    engine.step_back(marginals(t), incoming, total, weight_grads, bilateral, spatial);
  }
  at::Tensor result = at::empty_like(grad);
  engine.to_volume(total, result);
  return {result, weight_grads.sum(0)};
}

template <typename T, int W>
at::Tensor device_lattice_filter(const at::Tensor& values_in, const DeviceLattice<T>& lattice,
                                 bool transpose) {
  const at::Tensor values = values_in.contiguous();
  // Without normalisation the kernel's height is restored: 1 / (1 + 2^-5).
  const T scale = lattice.normalization == kNone ? T(32.0 / 33.0) : T(1);
  const Scalar<T> one{nullptr, T(1)};
  DeviceEngine<T, W> engine(lattice, {}, values.size(0), true, false, transpose,
                            values.options());
  engine.spread(engine.to_pixels(values, T(0)).template const_data_ptr<T>(), one, one);
  at::Tensor result = at::empty_like(values);
  engine.finish(nullptr, result.data_ptr<T>(), scale);
  return result;
}

template <typename T, int W>
at::Tensor device_spatial_filter(const at::Tensor& values_in, double sigma, bool exact,
                                 int normalization, bool transpose) {
  const at::Tensor values = values_in.contiguous();
  const int64_t height = values.size(1), width = values.size(2);
  DeviceLattice<T> sizes{};  // no vertices
  sizes.height = static_cast<int>(height);
  sizes.width = static_cast<int>(width);
  sizes.tiles_x = (sizes.width + kDeviceTile - 1) / kDeviceTile;
  sizes.tiles_y = (sizes.height + kDeviceTile - 1) / kDeviceTile;
  const Scalar<T> one{nullptr, T(1)};
  DeviceEngine<T, W> engine(
      sizes, make_device_plan<T>(height, width, sigma, exact, normalization, transpose, values),
      values.size(0), false, true, transpose, values.options());
  engine.spread(engine.to_pixels(values, T(0)).template const_data_ptr<T>(), one, one);
  at::Tensor result = at::empty_like(values);
  engine.finish(nullptr, result.data_ptr<T>(), T(1));
  return result;
}

}  // namespace crf
}  // namespace wsis_d2
