// Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
#include "dense_crf/mean_field.h"

#include <cmath>

#include "dense_crf/engine.h"

namespace wsis_d2 {
namespace crf {
namespace {

constexpr double kLog2E = 1.4426950408889634, kLn2 = 0.6931471805599453;

// How forward passes scale what they splat. Logits are in base 2; factors are applied while
// splatting, so that slicing adds plain sums.
template <typename T>
void set_scales(Pass<T>& pass, double weight_bilateral, double weight_spatial) {
  pass.splat_bilateral = static_cast<T>(weight_bilateral * kLog2E);
  pass.splat_spatial = static_cast<T>(weight_spatial * kLog2E);
  pass.norm_splat = pass.lattice->normalization == kAfter;
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
  set_scales(engine.pass(), weight_bilateral, weight_spatial);
  engine.pass().logits = logits.as<T>();
  TORCH_CHECK_VALUE(engine.read(scores.const_data_ptr<T>(), true),
                    "scores: they hold NaN or infinity; all values must be finite.");
  if (options.iterations == 0) {
    output.copy_(scores);
    return {output, saved};
  }
  for (int64_t t = 0; t < options.iterations; ++t) {
    T* q = options.save_every > 0 && t % options.save_every == 0
               ? saved.data_ptr<T>() + t / options.save_every * lattice.pixels * padded
               : nullptr;
    if (t == 0) {
      engine.begin(q);
    } else {
      engine.iterate(q, true);
    }
    engine.filter(false);
  }
  engine.finish(scores.const_data_ptr<T>(), output.data_ptr<T>(), static_cast<T>(kLn2));
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

  // Marginals of one stretch between saved ones, computed again where not all were saved.
  const int64_t every = options.save_every;
  const SpatialPlan<T> forward_plan =
      plan_spatial<T>(lattice, options.gaussian_xy, options.exact_spatial, lattice.normalization, false);
  Buffer again, logits;
  if (every > 1) {
    again = Buffer((every - 1) * size * sizeof(T));
    logits = Buffer(engine.pixel_bytes());
    pass.logits = logits.as<T>();
    engine.read(scores_in.contiguous().const_data_ptr<T>(), true);
  }
  auto saved_q = [&](int64_t t) { return saved.data_ptr<T>() + t / every * size; };
  auto later_q = [&](int64_t t) { return again.as<T>() + (t % every - 1) * size; };
  auto recompute = [&](int64_t first, int64_t last) {  // q of first + 1 .. last
    Engine<T> redo(lattice, weight_spatial != 0 ? &forward_plan : nullptr, weight_bilateral != 0,
                   labels);
    set_scales(redo.pass(), weight_bilateral, weight_spatial);
    redo.pass().logits = logits.as<T>();
    redo.spread(saved_q(first));
    redo.filter(false);
    for (int64_t t = first + 1; t <= last; ++t) {
      redo.iterate(later_q(t), t < last);
      if (t < last) redo.filter(false);
    }
  };
  engine.spread(incoming.as<T>());
  for (int64_t t = options.iterations - 1; t >= 0; --t) {
    const bool kept = t % every == 0, last = t == options.iterations - 1;
    if (!kept && (last || t % every == every - 1)) recompute(t / every * every, t);
    engine.filter(true);
    engine.go_back(kept ? saved_q(t) : later_q(t), t > 0);
  }
  engine.write(incoming.as<T>(), result.data_ptr<T>());
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
  engine.spread(pixels.as<T>());
  engine.filter(transpose);
  // Without normalisation the kernel's height is restored: 1 / (1 + 2^-5).
  const T scale = lattice.normalization == kNone ? T(32.0 / 33.0) : T(1);
  engine.finish(nullptr, output.data_ptr<T>(), scale);
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
  engine.pass().logits = pixels.as<T>();
  TORCH_CHECK_VALUE(engine.read(values.const_data_ptr<T>(), false),
                    "values: they hold NaN or infinity; all values must be finite.");
  engine.spread(pixels.as<T>());
  engine.filter(false);
  engine.finish(nullptr, output.data_ptr<T>(), T(1));
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
