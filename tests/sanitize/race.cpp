// SPDX-License-Identifier: Apache-2.0
//
// A data race on purpose: TSan must report it.
#include <cstdio>

int main() {
  int sum = 0;
#pragma omp parallel for num_threads(4)
  for (int i = 0; i < 100000; ++i) sum += i & 1;
  std::printf("%d\n", sum);
  return 0;
}
