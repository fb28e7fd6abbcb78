// Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
#include "dense_crf/mean_field.h"

#include <cmath>
#include <limits>

#include "dense_crf/engine.h"

namespace wsis_d2 {
namespace crf {
namespace {

constexpr double kLog2E = 1.4426950408889634, kLn2 = 0.6931471805599453;

// How forward passes scale what they splat.
template <typename T>
struct Forward {
  Engine<T>& engine;
  double weight_bilateral, weight_spatial;
  T* logits;

  void scales() {
    Pass<T>& pass = engine.pass();
    // Logits are in base 2; factors are applied while splatting, so that slicing adds plain sums.
    pass.splat_bilateral = static_cast<T>(weight_bilateral * kLog2E);
    pass.splat_spatial = static_cast<T>(weight_spatial * kLog2E);
    pass.norm_splat = pass.lattice->normalization == kAfter;
    pass.norm_slice = false;
    pass.logits = logits;
  }
};

// [tile][chunk]: 0 where every marginal of the chunk's labels is exactly 0 at every iteration, so that
// leaving the chunk out of the tile changes no bit. Row-normalised messages lie within the weights,
// and the exponential is 0 below the smallest normal number. Empty: nothing can be left out.
template <typename T>
std::vector<uint8_t> find_activity(const Lattice<T>& lattice, const at::Tensor& scores,
                                   double weight_bilateral, double weight_spatial) {
  const std::vector<Chunk> chunks = make_chunks(scores.size(0));
  const int64_t count = static_cast<int64_t>(chunks.size());
  if (count == 1 || lattice.normalization != kAfter) return {};
  // Twice the messages' bound: the careful softmax may take a maximum as low as minus the bound out.
  const double messages = 2.02 * (std::abs(weight_bilateral) + std::abs(weight_spatial));
  const double least = (sizeof(T) == 4 ? 127.0 : 1023.0) * kLn2 + messages;
  const auto [lowest, highest] = at::aminmax(scores);
  if (!(highest.item<double>() - lowest.item<double>() > least)) return {};
  const T* data = scores.const_data_ptr<T>();
  std::vector<uint8_t> activity(lattice.tiles_x * lattice.tiles_y * count);
  at::parallel_for(0, lattice.tiles_x * lattice.tiles_y, 8, [&](int64_t begin, int64_t end) {
    T bar[kTile * kTile];  // below it a score is out of reach
    for (int64_t tile = begin; tile < end; ++tile) {
      const int64_t x0 = tile % lattice.tiles_x * kTile, y0 = tile / lattice.tiles_x * kTile;
      const int64_t columns = std::min<int64_t>(kTile, lattice.width - x0);
      const int64_t rows = std::min<int64_t>(kTile, lattice.height - y0);
      auto row_of = [&](int64_t label, int64_t y) {
        return data + label * lattice.pixels + (y0 + y) * lattice.width + x0;
      };
      std::fill_n(bar, kTile * kTile, -std::numeric_limits<T>::infinity());
      for (int64_t l = 0; l < scores.size(0); ++l) {
        for (int64_t y = 0; y < rows; ++y) {
          const T* row = row_of(l, y);
          T* best = bar + y * kTile;
          for (int64_t x = 0; x < columns; ++x) best[x] = best[x] < row[x] ? row[x] : best[x];
        }
      }
      for (T& b : bar) b -= static_cast<T>(least);
      for (const Chunk& chunk : chunks) {
        bool any = false;
        for (int64_t l = chunk.first; l < chunk.first + chunk.labels && !any; ++l) {
          for (int64_t y = 0; y < rows && !any; ++y) {
            const T* row = row_of(l, y);
            bool reached = false;
            for (int64_t x = 0; x < columns; ++x) reached |= !(row[x] < bar[y * kTile + x]);
            any = reached;
          }
        }
        activity[tile * count + chunk.index] = any;
      }
    }
  });
  return activity;
}

template <typename T>
std::tuple<at::Tensor, at::Tensor> forward(const at::Tensor& scores_in, const Lattice<T>& lattice,
                                           double weight_bilateral, double weight_spatial,
                                           const MeanFieldOptions& options) {
  const at::Tensor scores = scores_in.contiguous();
  const int64_t labels = scores.size(0), padded = padded_labels(labels);
  at::Tensor output = pooled_tensor(scores.sizes(), scores.options());
  const int64_t kept = options.saved_count();
  at::Tensor saved = pooled_tensor({kept, lattice.pixels * padded}, scores.options());
  const SpatialPlan<T> plan =
      plan_spatial<T>(lattice, options.gaussian_xy, options.exact_spatial, lattice.normalization, false);
  Engine<T> engine(lattice, weight_spatial != 0 ? &plan : nullptr, weight_bilateral != 0, labels);
  Buffer logits(engine.pixel_bytes());
  Forward<T> step{engine, weight_bilateral, weight_spatial, logits.as<T>()};
  step.scales();
  Pass<T>& pass = engine.pass();
  const std::vector<uint8_t> activity =
      find_activity(lattice, scores, weight_bilateral, weight_spatial);
  if (!activity.empty()) pass.activity = activity.data();
  TORCH_CHECK_VALUE(engine.read(scores.const_data_ptr<T>(), true),
                    "scores: they hold NaN or infinity; all values must be finite.");
  if (options.iterations == 0) {
    output.copy_(scores);
    return {output, saved};
  }
  for (int64_t t = 0; t < options.iterations; ++t) {
    pass.q_out = options.save_every > 0 && t % options.save_every == 0
                     ? saved.data_ptr<T>() + t / options.save_every * lattice.pixels * padded
                     : nullptr;
    engine.run(t == 0 ? Mode::kFirst : Mode::kForward, t > 0, true);
    engine.filter(false);
  }
  pass.scores = scores.const_data_ptr<T>();
  pass.output = output.data_ptr<T>();
  pass.output_scale = static_cast<T>(kLn2);
  engine.run(Mode::kMessage, true, false);
  return {output, saved};
}

template <typename T>
std::tuple<at::Tensor, double, double> backward(const at::Tensor& grad_in, const at::Tensor& saved,
                                                const at::Tensor& scores_in,
                                                const Lattice<T>& lattice, double weight_bilateral,
                                                double weight_spatial,
                                                const MeanFieldOptions& options) {
  const at::Tensor grad = grad_in.contiguous();
  const int64_t labels = grad.size(0), size = lattice.pixels * padded_labels(labels);
  at::Tensor result = pooled_tensor(grad.sizes(), grad.options());
  std::vector<double> weight_grads(2 * lattice.bands, 0.0);
  const SpatialPlan<T> plan =
      plan_spatial<T>(lattice, options.gaussian_xy, options.exact_spatial, lattice.normalization, true);
  Engine<T> engine(lattice, &plan, true, labels);
  Buffer incoming(engine.pixel_bytes());
  Pass<T>& pass = engine.pass();
  pass.norm_slice = lattice.normalization == kAfter;
  pass.logits = incoming.as<T>();
  TORCH_CHECK_VALUE(engine.read(grad.const_data_ptr<T>(), false),
                    "grad: it holds NaN or infinity; all values must be finite.");
  // The gradient of the scores starts as the incoming one and gathers every iteration's.
  pass.grad = incoming.as<T>();
  pass.weight_bilateral = static_cast<T>(weight_bilateral);
  pass.weight_spatial = static_cast<T>(weight_spatial);
  pass.weight_grads = weight_grads.data();

  const at::Tensor scores = scores_in.contiguous();
  const std::vector<uint8_t> found =
      find_activity(lattice, scores, weight_bilateral, weight_spatial);
  const uint8_t* activity = found.empty() ? nullptr : found.data();

  // Marginals of one stretch between saved ones, computed again where not all were saved.
  const int64_t every = options.save_every;
  Buffer again;
  const SpatialPlan<T> forward_plan =
      plan_spatial<T>(lattice, options.gaussian_xy, options.exact_spatial, lattice.normalization, false);
  Buffer logits;
  if (every > 1) {
    again = Buffer((every - 1) * size * sizeof(T));
    logits = Buffer(engine.pixel_bytes());
  }
  auto recompute = [&](int64_t first, int64_t last) {  // q of first + 1 .. last
    Engine<T> redo(lattice, weight_spatial != 0 ? &forward_plan : nullptr, weight_bilateral != 0,
                   labels);
    Forward<T> step{redo, weight_bilateral, weight_spatial, logits.as<T>()};
    step.scales();
    redo.pass().activity = activity;
    // From the saved marginals: they are splatted as they are.
    redo.pass().logits = saved.data_ptr<T>() + first / every * size;
    redo.run(Mode::kRaw, false, true);
    redo.filter(false);
    redo.pass().logits = logits.as<T>();
    for (int64_t t = first + 1; t <= last; ++t) {
      redo.pass().q_out = again.as<T>() + (t - first - 1) * size;
      redo.run(Mode::kForward, true, t < last);
      if (t < last) redo.filter(false);
    }
  };
  if (every > 1) {
    pass.logits = logits.as<T>();
    engine.read(scores.const_data_ptr<T>(), true);
    pass.logits = incoming.as<T>();
  }
  for (int64_t t = options.iterations - 1; t >= 0; --t) {
    if (every > 1 && (t == options.iterations - 1 || t % every == every - 1)) {
      const int64_t first = t / every * every;
      if (t > first) recompute(first, t);
    }
    if (t == options.iterations - 1) engine.run(Mode::kRaw, false, true);
    engine.filter(true);
    pass.activity = activity;  // where marginals are 0, no gradient passes the softmax
    const int64_t first = t / every * every;
    pass.q = t == first ? saved.data_ptr<T>() + t / every * size
                        : again.as<T>() + (t - first - 1) * size;
    engine.run(Mode::kBackward, true, t > 0);
  }
  pass.output = result.data_ptr<T>();
  engine.write(incoming.as<T>());
  double bilateral = 0, spatial = 0;
  for (int b = 0; b < lattice.bands; ++b) {
    bilateral += weight_grads[2 * b];
    spatial += weight_grads[2 * b + 1];
  }
  return {result, bilateral, spatial};
}

template <typename T>
at::Tensor lattice_filter(const at::Tensor& values_in, const Lattice<T>& lattice, bool transpose) {
  const at::Tensor values = values_in.contiguous();
  at::Tensor output = pooled_tensor(values.sizes(), values.options());
  Engine<T> engine(lattice, nullptr, true, values.size(0));
  Buffer pixels(engine.pixel_bytes());
  Pass<T>& pass = engine.pass();
  pass.logits = pixels.as<T>();
  const bool after = lattice.normalization == kAfter;
  pass.norm_splat = after && !transpose;
  pass.norm_slice = after && transpose;
  TORCH_CHECK_VALUE(engine.read(values.const_data_ptr<T>(), false),
                    "values: they hold NaN or infinity; all values must be finite.");
  engine.run(Mode::kRaw, false, true);
  engine.filter(transpose);
  pass.output = output.data_ptr<T>();
  // Without normalisation the kernel's height is restored: 1 / (1 + 2^-5).
  if (lattice.normalization == kNone) pass.output_scale = T(32.0 / 33.0);
  engine.run(Mode::kMessage, true, false);
  return output;
}

template <typename T>
at::Tensor spatial_filter(const at::Tensor& values_in, double sigma, bool exact, int normalization,
                          bool transpose) {
  const at::Tensor values = values_in.contiguous();
  at::Tensor output = pooled_tensor(values.sizes(), values.options());
  const PlainLattice<T> plain(values.size(1), values.size(2));
  const SpatialPlan<T> plan =
      plan_spatial<T>(plain.lattice, sigma, exact, normalization, transpose);
  Engine<T> engine(plain.lattice, &plan, false, values.size(0));
  Buffer pixels(engine.pixel_bytes());
  Pass<T>& pass = engine.pass();
  pass.logits = pixels.as<T>();
  TORCH_CHECK_VALUE(engine.read(values.const_data_ptr<T>(), false),
                    "values: they hold NaN or infinity; all values must be finite.");
  engine.run(Mode::kRaw, false, true);
  engine.filter(false);
  pass.output = output.data_ptr<T>();
  engine.run(Mode::kMessage, true, false);
  return output;
}

double number(const at::Tensor& weight) { return weight.item<double>(); }

}  // namespace

std::tuple<at::Tensor, at::Tensor> mean_field_cpu(
    const at::Tensor& scores, const at::Tensor& header, const at::Tensor& records,
    const at::Tensor& index, const at::Tensor& weight_bilateral, const at::Tensor& weight_spatial,
    const MeanFieldOptions& options) {
  if (scores.scalar_type() == at::kDouble) {
    return forward<double>(scores, view_lattice<double>(header, records, index),
                           number(weight_bilateral), number(weight_spatial), options);
  }
  return forward<float>(scores, view_lattice<float>(header, records, index),
                        number(weight_bilateral), number(weight_spatial), options);
}

std::tuple<at::Tensor, double, double> mean_field_backward_cpu(
    const at::Tensor& grad, const at::Tensor& saved, const at::Tensor& scores,
    const at::Tensor& header, const at::Tensor& records, const at::Tensor& index,
    const at::Tensor& weight_bilateral, const at::Tensor& weight_spatial,
    const MeanFieldOptions& options) {
  if (grad.scalar_type() == at::kDouble) {
    return backward<double>(grad, saved, scores, view_lattice<double>(header, records, index),
                            number(weight_bilateral), number(weight_spatial), options);
  }
  return backward<float>(grad, saved, scores, view_lattice<float>(header, records, index),
                         number(weight_bilateral), number(weight_spatial), options);
}

at::Tensor lattice_filter_cpu(const at::Tensor& values, const at::Tensor& header,
                              const at::Tensor& records, const at::Tensor& index, bool transpose) {
  if (values.scalar_type() == at::kDouble) {
    return lattice_filter<double>(values, view_lattice<double>(header, records, index), transpose);
  }
  return lattice_filter<float>(values, view_lattice<float>(header, records, index), transpose);
}

at::Tensor spatial_filter_cpu(const at::Tensor& values, double sigma, bool exact,
                              int64_t normalization, bool transpose) {
  const int mode = static_cast<int>(normalization);
  return values.scalar_type() == at::kDouble
             ? spatial_filter<double>(values, sigma, exact, mode, transpose)
             : spatial_filter<float>(values, sigma, exact, mode, transpose);
}

}  // namespace crf
}  // namespace wsis_d2
