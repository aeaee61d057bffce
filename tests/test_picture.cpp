// Pictures of masks.
#include <doctest/doctest.h>

#include <string>

#include "girih/error.hpp"
#include "girih/pattern.hpp"
#include "pattern/picture.hpp"

using girih::Geometry;
using girih::Mask;
using girih::pattern::cell_size;
using girih::pattern::picture;

TEST_CASE("a small mask is drawn token by token") {
  const Geometry square{6, 6, 0, 0};
  CHECK(picture(Mask::parse("causal & (sink(1) | window(left=1))"), square) ==
        "#.....\n"
        "##....\n"
        "###...\n"
        "#.##..\n"
        "#..##.\n"
        "#...##\n");
  CHECK(picture(girih::causal(), {2, 5, 3, 0}) == "####.\n#####\n");
  CHECK(picture(girih::causal(), {3, 1, -2, 0}) == ".\n.\n#\n");
}

TEST_CASE("a cell says whether all, some or none of its elements are visible") {
  CHECK(cell_size({8, 8, 0, 0}, 4, 8) == 2);
  CHECK(picture(girih::causal(), {8, 8, 0, 0}, 4) == "+...\n#+..\n##+.\n###+\n");
  CHECK(picture(girih::causal(), {8, 8, 0, 0}, 64, 4) == "+...\n#+..\n##+.\n###+\n");
  CHECK(picture(girih::window({.left = 0, .right = 0}), {1000, 1000, 0, 0}, 2) == "+.\n.+\n");
}

TEST_CASE("S2-Attention's published pictures") {
  const Mask causal = girih::causal() & girih::strided({.local = 2, .stride = 3, .block = 2});
  CHECK(picture(causal, {16, 16, 0, 0}, 8) ==
        "+.......\n"
        "#+......\n"
        "##+.....\n"
        "#.#+....\n"
        "#..#+...\n"
        "#..##+..\n"
        "#..#.#+.\n"
        "#..#..#+\n");
  const Mask relative = girih::strided({.local = 2, .stride = 3, .block = 2, .relative = true});
  CHECK(picture(relative, {16, 16, 0, 0}, 8) ==
        "##..#..#\n"
        "###..#..\n"
        ".###..#.\n"
        "..###..#\n"
        "#..###..\n"
        ".#..###.\n"
        "..#..###\n"
        "#..#..##\n");
}

TEST_CASE("dilation and neighborhoods are drawn") {
  CHECK(picture(girih::causal() & girih::dilated(2), {5, 5, 0, 0}) ==
        "#....\n.#...\n#.#..\n.#.#.\n#.#.#\n");
  // Windows of three that are moved back in at the borders, and a key behind the grid.
  CHECK(picture(girih::neighborhood({.grid = {5}, .window = 3}), {5, 6, 1, 0}) ==
        "###..#\n###..#\n.###.#\n..####\n..####\n");
  CHECK(picture(girih::neighborhood({.grid = {2, 3}, .window = {1, 2}, .causal = {false, true}}),
                {6, 6, 0, 0}) ==
        "#.....\n"
        "##....\n"
        ".##...\n"
        "...#..\n"
        "...##.\n"
        "....##\n");
  // With a stride as long as the window, it is a Swin window.
  CHECK(picture(girih::neighborhood({.grid = {4}, .window = 2, .stride = 2}), {4, 4, 0, 0}) ==
        "##..\n##..\n..##\n..##\n");
}

TEST_CASE("cells that cross the end of the sequence count existing elements only") {
  CHECK(picture(girih::dense(), {5, 7, 2, 0}, 2) == "##\n##\n");
  CHECK(picture(!girih::sink(4), {5, 7, 2, 0}, 2) == ".#\n.#\n");
  CHECK(picture(!girih::sink(5), {5, 7, 2, 0}, 2) == ".+\n.+\n");
}

TEST_CASE("a picture stays within its bounds") {
  const std::string large = picture(girih::causal(), {5175, 5175, 0, 0});
  CHECK(cell_size({5175, 5175, 0, 0}) == 162);
  CHECK(large.size() == 32 * 33);  // 32 rows of 32 cells, and line ends
  const std::string flat = picture(girih::causal(), {100, 8192, 8092, 0});
  CHECK(flat == std::string(64, '#').replace(63, 1, "+") + "\n");
}

TEST_CASE("a picture of nothing is empty, and of no cells an error") {
  CHECK(picture(girih::dense(), {0, 5, 5, 0}).empty());
  CHECK(picture(girih::dense(), {5, 0, -5, 0}).empty());
  CHECK_THROWS_WITH_AS(picture(girih::dense(), {4, 4, 0, 0}, 0, 3),
                       "a picture of 0 x 3 cells: both numbers must be positive", girih::Error);
}
