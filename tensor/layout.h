#pragma once

#include <array>
#include <cstdint>
#include <string>

namespace tessera {

/// The ways to cut a training run, from the outermost axis of a mesh of ranks to the innermost: the further
/// in, the more its ranks say to each other, so the closer together they sit.
enum class MeshAxis : std::uint8_t {
  kPp,  ///< pipeline parallel: layers
  kDp,  ///< data parallel: sequences of the batch
  kCp,  ///< context parallel: tokens of a sequence
  kEp,  ///< expert parallel: experts of a layer
  kTp,  ///< tensor parallel: rows, columns and heads of a layer
};
inline constexpr std::array<MeshAxis, 5> kMeshAxes{MeshAxis::kPp, MeshAxis::kDp, MeshAxis::kCp, MeshAxis::kEp,
                                                   MeshAxis::kTp};

/// "pp", "dp", "cp", "ep", "tp".
[[nodiscard]] const char* name(MeshAxis axis) noexcept;

/// How the ranks along one axis hold a tensor. What a rank has in memory is its own part; the type says what
/// the parts are of.
class AxisLayout {
 public:
  enum class Kind : std::uint8_t {
    kInvariant,   ///< I: the same elements on every rank, and the same gradient
    kReplicated,  ///< R: the same elements on every rank; the gradient is a part of a sum over them
    kSharded,     ///< S(d): the elements are cut along dimension d
    kPartial,     ///< P: the value is the sum over the ranks; every rank has the same gradient
  };

  /// Which indices of the cut dimension a rank has. Only pieces in order are put together by a gather, and
  /// two tensors that are cut in different orders do not go together.
  enum class Order : std::uint8_t {
    kInOrder,   ///< rank r has the r-th piece, as Tensor::chunk cuts
    kBalanced,  ///< of 2R chunks the r-th and the r-th from the end (dist::SequenceCut::balanced)
    kPacked,    ///< something of each of several parts that stand one after the other, as chosen by whoever
                ///< cut: heads of queries, keys and values
  };

  constexpr AxisLayout() = default;
  [[nodiscard]] static constexpr AxisLayout invariant() { return {}; }
  [[nodiscard]] static constexpr AxisLayout replicated() { return AxisLayout(Kind::kReplicated); }
  [[nodiscard]] static constexpr AxisLayout partial() { return AxisLayout(Kind::kPartial); }
  [[nodiscard]] static constexpr AxisLayout sharded(int dim, Order order = Order::kInOrder) {
    return {Kind::kSharded, dim, order, false};
  }
  /// The same cut in dimension `dim` of a view.
  [[nodiscard]] constexpr AxisLayout moved_to(int dim) const { return {kind_, dim, order_, merged_}; }
  /// The same cut where its dimension has been merged behind another one, so that a rank's elements of the
  /// merged dimension `dim` are not neighbours: tokens of [B·T].
  [[nodiscard]] constexpr AxisLayout merged_into(int dim) const { return {kind_, dim, order_, true}; }

  [[nodiscard]] constexpr Kind kind() const { return kind_; }
  [[nodiscard]] constexpr int dim() const { return dim_; }  ///< of S(d)
  [[nodiscard]] constexpr Order order() const { return order_; }
  [[nodiscard]] constexpr bool is_merged() const { return merged_; }
  /// Whether a gather can put the pieces together.
  [[nodiscard]] constexpr bool in_order() const { return order_ == Order::kInOrder && !merged_; }
  [[nodiscard]] constexpr bool is_invariant() const { return kind_ == Kind::kInvariant; }
  [[nodiscard]] constexpr bool is_replicated() const { return kind_ == Kind::kReplicated; }
  [[nodiscard]] constexpr bool is_sharded() const { return kind_ == Kind::kSharded; }
  [[nodiscard]] constexpr bool is_partial() const { return kind_ == Kind::kPartial; }
  friend constexpr bool operator==(const AxisLayout&, const AxisLayout&) = default;

 private:
  friend class Layout;
  constexpr explicit AxisLayout(Kind kind) : kind_(kind) {}
  constexpr AxisLayout(Kind kind, int dim, Order order, bool merged)
      : kind_(kind), dim_(static_cast<std::int8_t>(dim)), order_(order), merged_(merged) {}

  Kind kind_ = Kind::kInvariant;
  std::int8_t dim_ = 0;
  Order order_ = Order::kInOrder;
  bool merged_ = false;
};

/// The layout type of a tensor: one AxisLayout for each axis of the mesh. A tensor begins as I on every axis,
/// which is what all tensors of a program without ranks are, and axes of size 1 stay I.
///
/// Operations compute the layout of their result and refuse what would be wrong (autograd/layout_rules.h);
/// only collectives (dist/collectives.h) turn one into another. The idea of local types that tell whose
/// gradient is a partial sum is from Xu et al., "GSPMD", 2021, and the duality of collectives from Shoeybi et
/// al., "Megatron-LM", 2019.
///
/// Example   Layout layout = Layout().with(MeshAxis::kDp, AxisLayout::sharded(0));
///           to_string(layout);                                      // "dp S(0)"
class Layout {
 public:
  constexpr Layout() = default;
  [[nodiscard]] constexpr AxisLayout operator[](MeshAxis axis) const {
    const auto code = static_cast<unsigned>((codes_ >> shift(axis)) & 0xFFu);
    return {static_cast<AxisLayout::Kind>(code & 3u), static_cast<int>((code >> 2) & 7u),
            static_cast<AxisLayout::Order>((code >> 5) & 3u), (code >> 7) != 0};
  }
  [[nodiscard]] constexpr Layout with(MeshAxis axis, AxisLayout on_axis) const {
    Layout result = *this;
    const std::uint64_t code =
        static_cast<std::uint64_t>(on_axis.kind_) | static_cast<std::uint64_t>(on_axis.dim_) << 2 |
        static_cast<std::uint64_t>(on_axis.order_) << 5 | (on_axis.merged_ ? 1ull : 0ull) << 7;
    result.codes_ = (codes_ & ~(0xFFull << shift(axis))) | code << shift(axis);
    return result;
  }
  /// True if it is I on every axis.
  [[nodiscard]] constexpr bool is_invariant() const { return codes_ == 0; }
  friend constexpr bool operator==(const Layout&, const Layout&) = default;

 private:
  [[nodiscard]] static constexpr int shift(MeshAxis axis) { return 8 * static_cast<int>(axis); }
  std::uint64_t codes_ = 0;  // a byte for each axis: kind, dimension (of kMaxDims = 8), order, merged; 0 is I
};

/// "R", "S(1)", "S(1, balanced)", "P", "I".
[[nodiscard]] std::string to_string(const AxisLayout& on_axis);
/// "dp S(0), tp R", without axes on which it is I; "I" if there is no other.
[[nodiscard]] std::string to_string(const Layout& layout);

}  // namespace tessera
