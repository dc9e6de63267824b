// The Python face of the CPU device: pools, packed matrices, caches and programs. Only translation happens here.

#include "bind.hpp"

#include <cstring>
#include <stdexcept>
#include <string>
#include <tuple>

#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include "bind_communicator.hpp"
#include "peak.hpp"
#include "program.hpp"

namespace nb = nanobind;

namespace anthesis {
namespace {

using PlaceTuple = std::tuple<bool, std::size_t, int>; // (rows are logit rows, floats per row before it, width)

Place place(const PlaceTuple& tuple) {
    const auto& [logit_rows, offset, width] = tuple;
    return {logit_rows ? Place::Rows::logit : Place::Rows::token, offset, width};
}

using Bytes = nb::ndarray<const std::uint8_t, nb::ndim<2>, nb::device::cpu>;
using Halves = nb::ndarray<const std::uint16_t, nb::ndim<2>, nb::device::cpu>;
using Floats = nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
template <class T, int kDims> using Array = nb::ndarray<const T, nb::ndim<kDims>, nb::c_contig, nb::device::cpu>;

struct VectorHandle {
    Vector values;
    std::size_t size;
};

VectorHandle make_vector(const Floats& array) {
    auto values = std::make_shared<std::vector<float>>((array.size() + 15) / 16 * 16);
    std::memcpy(values->data(), array.data(), array.size() * sizeof(float));
    return {std::move(values), array.size()};
}

Vector vector_of(const VectorHandle* handle) { return handle ? handle->values : nullptr; }

std::shared_ptr<Matrix> pack_matrix(Arena& arena, Pool& pool, const std::string& kind_name, int columns, const Bytes& values,
                                    const std::optional<Halves>& scales, const std::optional<Halves>& minimums, bool has_biases) {
    const MatrixKind kind = matrix_kind(kind_name);
    const int rows = static_cast<int>(values.shape(0));
    if (values.stride(1) != 1 || (scales && scales->stride(1) != 1) || (minimums && minimums->stride(1) != 1))
        throw std::invalid_argument("the rows of a matrix must be contiguous");
    if (kind.has_scale != scales.has_value() || kind.has_minimum != minimums.has_value())
        throw std::invalid_argument("a matrix of the kind " + kind_name + " has too few or too many scales");
    const MatrixLayout layout(kind, rows, columns, has_biases);
    auto matrix = std::make_shared<Matrix>(Matrix{layout, arena.take(layout.nbytes())});
    StoredMatrix stored{reinterpret_cast<const std::byte*>(values.data()), static_cast<std::size_t>(values.stride(0))};
    if (scales) {
        stored.scales = scales->data();
        stored.scales_stride = static_cast<std::size_t>(scales->stride(0));
    }
    if (minimums) {
        stored.minimums = minimums->data();
        stored.minimums_stride = static_cast<std::size_t>(minimums->stride(0));
    }
    nb::gil_scoped_release released;
    pool.run([&](int thread) {
        const auto [first, last] = Team{pool, thread}.share(layout.tiles);
        pack_tiles(stored, *matrix, first, last);
    });
    return matrix;
}

std::shared_ptr<LayerCache> make_cache(Arena& arena, int blocks, int kv_heads, int head_dim, bool is_bf16, const LayerCache* old) {
    const CacheLayout layout{kv_heads, head_dim, is_bf16};
    std::shared_ptr<std::byte> data = arena.take(layout.block_bytes() * blocks);
    if (old) std::memcpy(data.get(), old->data.get(), old->layout.block_bytes() * old->blocks);
    return std::make_shared<LayerCache>(LayerCache{layout, blocks, std::move(data)});
}

// In each cache, block sources[i] is copied onto block targets[i]; no block may be both.
void copy_blocks(Pool& pool, const std::vector<std::shared_ptr<LayerCache>>& caches, const std::vector<int>& sources, const std::vector<int>& targets) {
    if (sources.size() != targets.size()) throw std::invalid_argument("every block that is copied needs one target");
    for (const auto& cache : caches)
        for (const auto* blocks : {&sources, &targets})
            for (const int block : *blocks)
                if (block < 0 || block >= cache->blocks) throw std::out_of_range("no block " + std::to_string(block) + " in the cache");
    const int copies = static_cast<int>(sources.size());
    nb::gil_scoped_release released;
    pool.run([&](int thread) {
        const auto [first, last] = Team{pool, thread}.share(static_cast<int>(caches.size()) * copies);
        for (int i = first; i < last; ++i) {
            const LayerCache& cache = *caches[i / copies];
            const std::size_t nbytes = cache.layout.block_bytes();
            std::memcpy(cache.data.get() + nbytes * targets[i % copies], cache.data.get() + nbytes * sources[i % copies], nbytes);
        }
    });
}

Activation activation_of(const std::optional<std::string>& name) {
    if (!name) return Activation::none;
    if (*name == "gelu") return Activation::gelu;
    if (*name == "gelu_tanh") return Activation::gelu_tanh;
    if (*name == "silu") return Activation::silu;
    if (*name == "relu") return Activation::relu;
    throw std::invalid_argument("no kernel for the activation " + *name);
}

struct NormHandle {
    std::shared_ptr<const Norm> norm;
};

NormHandle make_norm(const VectorHandle& weight, const VectorHandle* bias, float epsilon, bool centered) {
    return {std::make_shared<Norm>(Norm{weight.values, vector_of(bias), epsilon, centered})};
}

// (matrix, gate_by, bias, gate_by_bias, wide, out, to_logits)
using Part = std::tuple<std::shared_ptr<Matrix>, std::shared_ptr<Matrix>, const VectorHandle*, const VectorHandle*, bool, PlaceTuple, bool>;

// Whether the product adds biases, which are in the matrix from then on.
bool with_biases(Matrix* matrix, const VectorHandle* biases) {
    if (!biases) return false;
    if (!matrix || static_cast<int>(biases->size) != matrix->layout.rows)
        throw std::invalid_argument("biases without a matrix that has as many rows");
    set_biases(*matrix, biases->values->data());
    return true;
}

void add_linear(Program& program, const PlaceTuple& x, const NormHandle* norm, const std::vector<Part>& parts,
                const std::optional<std::string>& activation, const std::optional<PlaceTuple>& residual, int best_of) {
    LinearSpec spec;
    spec.best_of = best_of;
    spec.norm = norm ? norm->norm : nullptr;
    spec.x = place(x);
    for (const auto& [matrix, gate_by, bias, gate_by_bias, wide, out, to_logits] : parts)
        spec.parts.push_back({matrix, gate_by, with_biases(matrix.get(), bias), with_biases(gate_by.get(), gate_by_bias),
                              wide ? InputWidth::wide : InputWidth::natural, place(out), to_logits});
    if (best_of && (spec.parts.size() != 1 || spec.parts[0].gate_by || best_of > spec.parts[0].matrix->layout.rows))
        throw std::invalid_argument("the best is that of one matrix's outputs");
    spec.activation = activation_of(activation);
    if (residual) {
        spec.has_residual = true;
        spec.residual = place(*residual);
    }
    program.add(std::move(spec));
}

void add_attend(Program& program, std::shared_ptr<LayerCache> cache, const PlaceTuple& q, const PlaceTuple& k, const PlaceTuple& v,
                const PlaceTuple& out, const std::optional<PlaceTuple>& angles, int queries_per_kv_head, int first_head,
                int first_kv_head, int heads, float scale, std::vector<float> slopes, int window) {
    AttendSpec spec;
    spec.cache = std::move(cache);
    spec.q = place(q);
    spec.k = place(k);
    spec.v = place(v);
    spec.out = place(out);
    if (angles) {
        spec.rotates = true;
        spec.angles = place(*angles);
    }
    spec.queries_per_kv_head = queries_per_kv_head;
    spec.first_head = first_head;
    spec.first_kv_head = first_kv_head;
    spec.heads = heads;
    spec.scale = scale;
    spec.slopes = std::move(slopes);
    spec.window = window;
    program.add(std::move(spec));
}

ElementwiseSpec::Kind elementwise_kind(const std::string& name) {
    using Kind = ElementwiseSpec::Kind;
    if (name == "activate") return Kind::activate;
    if (name == "add") return Kind::add;
    if (name == "multiply") return Kind::multiply;
    if (name == "add_vector") return Kind::add_vector;
    if (name == "select_rows") return Kind::select_rows;
    throw std::invalid_argument("no operation of elements is called " + name);
}

void add_elementwise(Program& program, const std::string& kind, const PlaceTuple& a, const std::optional<PlaceTuple>& b,
                     const VectorHandle* vector, const std::optional<std::string>& activation, const PlaceTuple& out) {
    program.add(ElementwiseSpec{elementwise_kind(kind), activation_of(activation), place(a), b ? place(*b) : Place{}, place(out), vector_of(vector)});
}

// An array of a step, never a converted copy of it: what is kept is a pointer.
template <class T> T as_it_is(const nb::dict& arrays, const char* name) {
    const nb::object given = arrays[name];
    T array;
    if (!nb::try_cast(given, array, false)) throw std::invalid_argument(std::string(name) + " has another type or layout than the step needs");
    return array;
}

// The arrays of a step by name. They are given as a dictionary: which there are depends on how the program ends.
template <class T, int kDims> const T* input(const nb::dict& arrays, const char* name, std::size_t rows, std::size_t width = 0) {
    if (!arrays.contains(name)) return nullptr;
    const auto array = as_it_is<Array<T, kDims>>(arrays, name);
    if (array.shape(0) != rows || (kDims == 2 && width && array.shape(1) != width))
        throw std::invalid_argument(std::string(name) + " has another shape than the step");
    return array.data();
}

template <class T, int kDims> T* output(const nb::dict& arrays, const char* name, std::size_t rows) {
    if (!arrays.contains(name)) return nullptr;
    const auto array = as_it_is<nb::ndarray<T, nb::ndim<kDims>, nb::c_contig, nb::device::cpu>>(arrays, name);
    if (array.shape(0) != rows) throw std::invalid_argument(std::string(name) + " has another shape than the step");
    return array.data();
}

void run_program(Program& program, const nb::dict& inputs, const nb::dict& outputs) {
    const auto tokens = as_it_is<Array<std::int32_t, 1>>(inputs, "tokens");
    const auto segments = as_it_is<Array<std::int32_t, 2>>(inputs, "segments");
    const auto block_table = as_it_is<Array<std::int32_t, 2>>(inputs, "block_table");
    const std::size_t R = tokens.size();
    const std::size_t L = inputs.contains("logit_rows") ? as_it_is<Array<std::int32_t, 1>>(inputs, "logit_rows").size() : 0;
    StepInputs in;
    in.rows = static_cast<int>(R);
    in.logit_rows = static_cast<int>(L);
    in.tokens = tokens.data();
    in.positions = input<std::int32_t, 1>(inputs, "positions", R);
    in.slots = input<std::int32_t, 1>(inputs, "slots", R);
    if (!in.positions || !in.slots) throw std::invalid_argument("a step needs positions and slots");
    in.segments = segments.data();
    // A table has a line for every sequence that there may be; those at its end that have no rows are nobody's business.
    in.num_segments = static_cast<int>(segments.shape(0));
    while (in.num_segments > 0 && in.segments[3 * in.num_segments - 2] == 0) --in.num_segments;
    in.block_table = block_table.data();
    in.table_width = static_cast<int>(block_table.shape(1));
    in.logit_row_numbers = input<std::int32_t, 1>(inputs, "logit_rows", L);
    in.temperature = input<float, 1>(inputs, "temperature", L);
    in.top_p = input<float, 1>(inputs, "top_p", L);
    in.min_p = input<float, 1>(inputs, "min_p", L);
    in.repetition_penalty = input<float, 1>(inputs, "repetition_penalty", L);
    in.top_k = input<std::int32_t, 1>(inputs, "top_k", L);
    in.seed = input<std::uint64_t, 1>(inputs, "seed", L);
    in.seen = input<std::uint8_t, 2>(inputs, "seen", L);
    in.hidden = input<float, 2>(inputs, "hidden", R);
    StepOutputs out;
    out.token = output<std::int32_t, 1>(outputs, "token", L);
    out.logits = output<float, 2>(outputs, "logits", L);
    out.logprob = output<float, 1>(outputs, "logprob", L);
    out.top_tokens = output<std::int32_t, 2>(outputs, "top_tokens", L);
    out.top_logprobs = output<float, 2>(outputs, "top_logprobs", L);
    out.hidden = output<float, 2>(outputs, "hidden", R);
    nb::gil_scoped_release released;
    program.run(in, out);
}

} // namespace

void bind_cpu(nb::module_& m) {
    nb::class_<Pool>(m, "Pool").def(nb::init<int>(), nb::arg("threads")).def_prop_ro("size", &Pool::size);
    nb::class_<Arena>(m, "Arena").def(nb::init<>());
    nb::class_<VectorHandle>(m, "Vector").def("__init__", [](VectorHandle* self, const Floats& values) {
        new (self) VectorHandle(make_vector(values));
    }, nb::arg("values")).def("values", [](const VectorHandle& self) {
        return nb::ndarray<nb::numpy, const float, nb::ndim<1>>(self.values->data(), {self.size}, nb::find(self));
    });
    nb::class_<Matrix>(m, "Matrix")
        .def_prop_ro("shape", [](const Matrix& self) { return std::tuple(self.layout.rows, self.layout.columns); })
        .def_prop_ro("nbytes", [](const Matrix& self) { return self.layout.nbytes(); })
        .def("row", [](const Matrix& self, int row, nb::ndarray<float, nb::ndim<1>, nb::c_contig> out) {
            if (row < 0 || row >= self.layout.rows || static_cast<int>(out.size()) != self.layout.columns)
                throw std::invalid_argument("no such row, or an array of another width");
            dequantize_row(self, row, out.data());
        }, nb::arg("row"), nb::arg("out"));
    m.def("pack_matrix", &pack_matrix, nb::arg("arena"), nb::arg("pool"), nb::arg("kind"), nb::arg("columns"), nb::arg("values"),
          nb::arg("scales").none(), nb::arg("minimums").none(), nb::arg("has_biases"));
    m.def("matrix_bytes", [](const std::string& kind_name, int rows, int columns) {
        return MatrixLayout(matrix_kind(kind_name), rows, columns).nbytes();
    }, nb::arg("kind"), nb::arg("rows"), nb::arg("columns"));
    nb::class_<LayerCache>(m, "LayerCache");
    m.def("make_cache", &make_cache, nb::arg("arena"), nb::arg("blocks"), nb::arg("kv_heads"), nb::arg("head_dim"), nb::arg("is_bf16"), nb::arg("old").none());
    m.def("copy_blocks", &copy_blocks, nb::arg("pool"), nb::arg("caches"), nb::arg("sources"), nb::arg("targets"));
    nb::class_<NormHandle>(m, "Norm").def("__init__", [](NormHandle* self, const VectorHandle& weight, const VectorHandle* bias, float epsilon, bool centered) {
        new (self) NormHandle(make_norm(weight, bias, epsilon, centered));
    }, nb::arg("weight"), nb::arg("bias").none(), nb::arg("epsilon"), nb::arg("centered"));
    m.def("multiply_add_peak", [](const std::string& kind, int threads, double seconds) {
        const Elements elements = matrix_kind(kind).elements;
        nb::gil_scoped_release released;
        Pool pool(threads);
        return multiply_add_peak(pool, chosen_kernels(), elements, seconds);
    }, nb::arg("kind"), nb::arg("threads"), nb::arg("seconds"));
    m.def("kernels", [] {
        std::vector<std::string> names;
        for (const Kernels* kernels : usable_kernels()) names.emplace_back(kernels->name);
        return names;
    });
    m.def("chosen_kernels", [] { return std::string(chosen_kernels().name); });

    nb::class_<Program>(m, "Program")
        .def("__init__", [](Program* self, std::shared_ptr<Pool> pool, std::size_t floats_per_row, std::size_t floats_per_logit_row, const nb::object& ranks) {
            new (self) Program(std::move(pool), floats_per_row, floats_per_logit_row, communicator_of(ranks));
        }, nb::arg("pool"), nb::arg("floats_per_row"), nb::arg("floats_per_logit_row"), nb::arg("ranks").none())
        .def("add_embed", [](Program& self, std::shared_ptr<Matrix> matrix, bool positions, int offset, const PlaceTuple& out) {
            self.add(EmbedSpec{positions ? EmbedSpec::Ids::positions : EmbedSpec::Ids::tokens, std::move(matrix), offset, place(out)});
        }, nb::arg("matrix"), nb::arg("positions"), nb::arg("offset"), nb::arg("out"))
        .def("add_norm", [](Program& self, const NormHandle& norm, int width, const PlaceTuple& x, const PlaceTuple& out) {
            self.add(NormRowsSpec{*norm.norm, width, place(x), place(out)});
        }, nb::arg("norm"), nb::arg("width"), nb::arg("x"), nb::arg("out"))
        .def("add_linear", &add_linear, nb::arg("x"), nb::arg("norm").none(), nb::arg("parts"), nb::arg("activation").none(), nb::arg("residual").none(),
             nb::arg("best_of"))
        .def("add_angles", [](Program& self, std::vector<double> frequencies, const PlaceTuple& out) {
            self.add(AnglesSpec{std::move(frequencies), place(out)});
        }, nb::arg("frequencies"), nb::arg("out"))
        .def("add_rotate", [](Program& self, const PlaceTuple& x, const PlaceTuple& angles, int head_dim, const PlaceTuple& out) {
            self.add(RotateSpec{place(x), place(angles), place(out), head_dim});
        }, nb::arg("x"), nb::arg("angles"), nb::arg("head_dim"), nb::arg("out"))
        .def("add_attend", &add_attend, nb::arg("cache"), nb::arg("q"), nb::arg("k"), nb::arg("v"), nb::arg("out"), nb::arg("angles").none(),
             nb::arg("queries_per_kv_head"), nb::arg("first_head"), nb::arg("first_kv_head"), nb::arg("heads"), nb::arg("scale"),
             nb::arg("slopes"), nb::arg("window"))
        .def("add_elementwise", &add_elementwise, nb::arg("kind"), nb::arg("a"), nb::arg("b").none(), nb::arg("vector").none(),
             nb::arg("activation").none(), nb::arg("out"))
        .def("add_all_reduce", [](Program& self, const PlaceTuple& x, const PlaceTuple& out) {
            self.add(AllReduceSpec{place(x), place(out)});
        }, nb::arg("x"), nb::arg("out"))
        .def("add_gather", [](Program& self, const PlaceTuple& x, int width) {
            self.add(GatherSpec{place(x), width});
        }, nb::arg("x"), nb::arg("width"))
        .def("add_hidden", [](Program& self, bool in, const PlaceTuple& at) {
            self.add(HiddenSpec{in ? HiddenSpec::Way::in : HiddenSpec::Way::out, place(at)});
        }, nb::arg("is_input"), nb::arg("place"))
        .def("add_argmax", [](Program& self, const PlaceTuple& logits, int first_id, int usable, bool over_ranks, bool of_candidates) {
            self.add(ArgmaxSpec{place(logits), first_id, usable, over_ranks, of_candidates});
        }, nb::arg("logits"), nb::arg("first_id"), nb::arg("usable"), nb::arg("over_ranks"), nb::arg("of_candidates"))
        .def("measure", &Program::measure, nb::arg("on"))
        .def("seconds", &Program::seconds)
        .def("add_sample", [](Program& self, const PlaceTuple& logits, int usable, int first_id, int all_usable, int vocab, int ranks, int top) {
            self.add(SampleSpec{place(logits), usable, first_id, all_usable, vocab, ranks, top});
        }, nb::arg("logits"), nb::arg("usable"), nb::arg("first_id"), nb::arg("all_usable"), nb::arg("vocab"), nb::arg("ranks"), nb::arg("top"))
        .def("run", &run_program, nb::arg("inputs"), nb::arg("outputs"));
}

} // namespace anthesis
