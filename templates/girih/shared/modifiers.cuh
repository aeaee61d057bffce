// What is done to the score of a visible element between the softcap and the softmax, as types that
// stand beside a mask's structure: With<Leaf<Causal>, Alibi, Bias>. A modifier offers
//   kNumNumbers                       of the head's numbers, behind those of its mask
//   Modifier(numbers, geometry)       what is the same for all elements of a head
//   operator()(score, place)          the score instead; natural, softmax_scale included
// SinkLogit leaves scores alone and offers logit(), which joins the row's sum instead.
#pragma once

#include "girih/shared/structure.cuh"

namespace girih {

// An element: its row and key in their sequence, which need not exist, and how far the key is
// before the row's position.
struct Place {
  int q;
  int k;
  float distance;  // p - k
};

// A float32 input's plane of the geometry's sequence and head.
GIRIH_HD const float* plane_of_values(const Geometry& g, int slot) {
  return reinterpret_cast<const float*>(g.inputs[slot].plane(g.batch, g.local_head));
}

// s - slope * |p - k|
struct Alibi {
  static constexpr int kNumNumbers = 1;
  static constexpr bool kRises = true;  // from key to key, up to the row's position
  float slope;
  GIRIH_HD Alibi(const int* numbers, const Geometry& g) : slope(*plane_of_values(g, numbers[0])) {}
  GIRIH_HD float operator()(float score, const Place& at) const {
    return score - slope * (at.distance < 0 ? -at.distance : at.distance);
  }
};

// s + bias[k]
struct Bias {
  static constexpr int kNumNumbers = 1;
  const float* values;
  int seqlen_k;
  GIRIH_HD Bias(const int* numbers, const Geometry& g)
      : values(plane_of_values(g, numbers[0])), seqlen_k(g.seqlen_k) {}
  GIRIH_HD float operator()(float score, const Place& at) const {
    return score + (at.k < seqlen_k ? values[at.k] : 0.0f);
  }
};

// A logit that every row sees beside its keys, and that has no value.
struct SinkLogit {
  static constexpr int kNumNumbers = 1;
  float value;
  GIRIH_HD SinkLogit(const int* numbers, const Geometry& g)
      : value(*plane_of_values(g, numbers[0])) {}
  GIRIH_HD float operator()(float score, const Place&) const { return score; }
  GIRIH_HD float logit() const { return value; }
};

template <class Modifier>
constexpr bool is_sink = requires(const Modifier& modifier) {
  modifier.logit();
};

template <class Modifier>  // or a structure with such a modifier
constexpr bool is_rising = requires {
  requires Modifier::kRises;
};

template <class Modifier>
constexpr bool is_expression = requires {
  typename Modifier::Expression;
};

// Some modifiers, applied in this order.
template <class... Modifiers>
struct ModifierChain {
  static constexpr int kNumNumbers = 0;
  GIRIH_HD ModifierChain(const int*, const Geometry&) {}
  GIRIH_HD float operator()(float score, const Place&) const { return score; }
};
template <class First, class... Rest>
struct ModifierChain<First, Rest...> {
  static constexpr int kNumNumbers = First::kNumNumbers + ModifierChain<Rest...>::kNumNumbers;
  First first;
  ModifierChain<Rest...> rest;
  GIRIH_HD ModifierChain(const int* numbers, const Geometry& g)
      : first(numbers, g), rest(numbers + First::kNumNumbers, g) {}
  GIRIH_HD float operator()(float score, const Place& at) const {
    return rest(first(score, at), at);
  }
  GIRIH_HD float logit() const requires(is_sink<First> || (is_sink<Rest> || ...)) {
    if constexpr (is_sink<First>) {
      return first.logit();
    } else {
      return rest.logit();
    }
  }
};

// A mask's structure and its modifiers. Seeks and row_bits are the mask's.
template <class Mask, class... Modifiers>
struct With : Mask {
  using Chain = ModifierChain<Modifiers...>;
  static constexpr int kNumNumbers = Mask::kNumNumbers + Chain::kNumNumbers;
  static constexpr bool kScores = (!is_sink<Modifiers> || ...);
  static constexpr bool kRises = (is_rising<Modifiers> || ...);
  static constexpr bool kSink = (is_sink<Modifiers> || ...);
  static constexpr bool kExpression = (is_expression<Modifiers> || ...);
  GIRIH_HD static Chain chain(const int* numbers, const Geometry& g) {
    return Chain(numbers + Mask::kNumNumbers, g);
  }
};

// The modifiers of a kernel's head classes.
template <class Classes>
struct ClassModifiers;
template <class... Structures>
struct ClassModifiers<HeadClasses<Structures...>> {
  template <class Structure>
  static constexpr bool modifies_scores = requires {
    requires Structure::kScores;
  };
  template <class Structure>
  static constexpr bool has_sink = requires {
    requires Structure::kSink;
  };
  template <class Structure>
  static constexpr bool has_expression = requires {
    requires Structure::kExpression;
  };

  static constexpr bool kScores = (modifies_scores<Structures> || ...);
  static constexpr bool kRising = (is_rising<Structures> || ...);
  static constexpr bool kSinks = (has_sink<Structures> || ...);
  static constexpr bool kExpressions = (has_expression<Structures> || ...);

  // body(modifiers) where the class changes scores. The branch is uniform.
  template <class Body>
  GIRIH_HD static void apply(int head_class, const int* numbers, const Geometry& g, Body body) {
    int index = 0;
    (apply_one<Structures>(head_class == index++, numbers, g, body), ...);
  }

  // -inf where the class has none.
  GIRIH_HD static float sink_logit(int head_class, const int* numbers, const Geometry& g) {
    float logit = kMinusInfinity;
    int index = 0;
    (find_sink<Structures>(head_class == index++, numbers, g, logit), ...);
    return logit;
  }

 private:
  template <class Structure, class Body>
  GIRIH_HD static void apply_one(bool chosen, const int* numbers, const Geometry& g, Body& body) {
    if constexpr (modifies_scores<Structure>) {
      if (chosen) body(Structure::chain(numbers, g));
    }
  }
  template <class Structure>
  GIRIH_HD static void find_sink(bool chosen, const int* numbers, const Geometry& g, float& logit) {
    if constexpr (has_sink<Structure>) {
      if (chosen) logit = Structure::chain(numbers, g).logit();
    }
  }
};

}  // namespace girih
