// Random numbers and elementary functions for the scenes: the same bits on every IEEE machine, so no libm and no
// std distributions. (sqrt, ldexp, frexp and floor are exact by the standard.)
#pragma once

#include <cmath>
#include <cstdint>

namespace daflow::scene {

// 2^x by Taylor's series on [-1/2, 1/2].
inline double exp2_exact(double x) {
  const double whole = std::floor(x + 0.5);
  const double y = (x - whole) * 0.6931471805599453;
  double sum = 1;
  for (int k = 16; k >= 1; --k) sum = 1 + y / k * sum;
  return std::ldexp(sum, static_cast<int>(whole));
}

// log2(x), x > 0, by the series of the inverse hyperbolic tangent.
inline double log2_exact(double x) {
  int exponent = 0;
  const double mantissa = std::frexp(x, &exponent);  // in [1/2, 1)
  const double z = (mantissa * 1.4142135623730951 - 1) / (mantissa * 1.4142135623730951 + 1);
  double sum = 0;
  for (int k = 21; k >= 1; k -= 2) sum = sum * z * z + 1.0 / k;
  return exponent - 0.5 + 2 * z * sum * 1.4426950408889634;
}

struct Direction {
  double cos, sin;
};

// Of an angle in turns.
inline Direction direction(double turns) {
  const double x = (turns - std::floor(turns + 0.5)) * 6.283185307179586;
  double cosine = 1, sine = 1;
  for (int k = 14; k >= 1; --k) {
    cosine = 1 - x * x / ((2 * k - 1) * (2 * k)) * cosine;
    sine = 1 - x * x / ((2 * k) * (2 * k + 1)) * sine;
  }
  return {cosine, x * sine};
}

// The bijective finaliser of SplitMix64.
inline std::uint64_t scramble(std::uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ULL;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebULL;
  return x ^ (x >> 31);
}

// Counter-based: draw n is a function of key and n alone. Two draws never stand in one expression or argument list,
// whose order the language leaves open (braces and statements are in order).
class Random {
 public:
  explicit Random(std::uint64_t key) : key_(key) {}

  // An independent generator; taking it draws nothing here.
  Random stream(std::uint64_t number) const { return Random(scramble(key_ + 0xd1342543de82ef95ULL * (number + 1))); }

  std::uint64_t bits() { return scramble(key_ + 0x9e3779b97f4a7c15ULL * ++counter_); }
  double uniform() { return static_cast<double>(bits() >> 11) * 0x1p-53; }  // [0, 1)
  double uniform(double low, double high) { return low + (high - low) * uniform(); }
  double log_uniform(double low, double high) { return low * exp2_exact(uniform() * log2_exact(high / low)); }
  int integer(int low, int high) { return low + static_cast<int>(uniform() * (high - low + 1)); }  // both included
  bool chance(double probability) { return uniform() < probability; }
  Direction angle() { return direction(uniform()); }

 private:
  std::uint64_t key_, counter_ = 0;
};

}  // namespace daflow::scene
