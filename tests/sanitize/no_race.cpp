// SPDX-License-Identifier: Apache-2.0
//
// OpenMP as the library uses it, correct: TSan must stay silent.
#include <cstdio>
#include <vector>

int main() {
  constexpr int kItems = 20000;
  std::vector<double> a(kItems), b(kItems);
  double total = 0;
  for (int round = 0; round < 20; ++round) {
#pragma omp parallel num_threads(4)
    {
#pragma omp for schedule(dynamic, 64)
      for (int i = 0; i < kItems; ++i) a[i] = i + round;
#pragma omp for schedule(static)
      for (int i = 0; i < kItems; ++i) b[i] = a[kItems - 1 - i];
#pragma omp critical
      total += b[0];
    }
#pragma omp parallel for num_threads(3) reduction(+ : total)
    for (int i = 0; i < kItems; ++i) total += b[i];
  }
  return total > 0 ? 0 : 1;
}
