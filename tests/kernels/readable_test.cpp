#include "kernels/readable.h"

#include <gtest/gtest.h>

#include <limits>

namespace tessera {
namespace {

TEST(Readable, PutsCommasBetweenThousands) {
  EXPECT_EQ(with_commas(0), "0");
  EXPECT_EQ(with_commas(999), "999");
  EXPECT_EQ(with_commas(1000), "1,000");
  EXPECT_EQ(with_commas(4404412), "4,404,412");
  EXPECT_EQ(with_commas(-123), "-123");
  EXPECT_EQ(with_commas(-123456), "-123,456");
}

TEST(Readable, GivesBytesThreeDigitsAndAUnit) {
  EXPECT_EQ(with_byte_unit(0), "0 B");
  EXPECT_EQ(with_byte_unit(999), "999 B");
  EXPECT_EQ(with_byte_unit(1000), "1.00 kB");
  EXPECT_EQ(with_byte_unit(9994), "9.99 kB");
  EXPECT_EQ(with_byte_unit(9996), "10.0 kB");
  EXPECT_EQ(with_byte_unit(99960), "100 kB");
  EXPECT_EQ(with_byte_unit(999600), "1.00 MB");
  EXPECT_EQ(with_byte_unit(74500000), "74.5 MB");
  EXPECT_EQ(with_byte_unit(-1500), "-1.50 kB");
  EXPECT_EQ(with_byte_unit(std::numeric_limits<std::int64_t>::max()), "9.22 EB");
}

}  // namespace
}  // namespace tessera
