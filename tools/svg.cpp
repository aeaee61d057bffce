#include "svg.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <bit>
#include <map>

#include "pattern/interpret.hpp"

namespace girih::tools {
namespace {

// Of glazed tiles: plaster, amber, a darker amber, lapis.
constexpr const char* kPaper = "#fffdf8";
constexpr const char* kInk = "#2b2f38";
constexpr const char* kFaintInk = "#7c7f86";
constexpr const char* kEmpty = "#f1ebdd";
constexpr const char* kPartial = "#f3cf86";
constexpr const char* kInPartial = "#d9902f";
constexpr const char* kFull = "#1f5f8b";

constexpr double kSide = 380;     // of the longer side of a matrix, in pixels
constexpr double kShortest = 12;  // of its shorter side
constexpr double kLeftMargin = 74, kRightMargin = 26, kTopMargin = 92, kBottomMargin = 40;
constexpr double kHeader = 96;
constexpr int kMaxColumns = 3;       // of panels
constexpr int kFewElements = 1024;   // rows of a matrix whose partial tiles show their elements
constexpr double kLeastForGrid = 5;  // pixels of a tile, for lines between tiles
constexpr std::size_t kMaxTiles = 4'000'000;
constexpr std::size_t kMaxRectangles = 200'000;

std::string escaped(std::string_view text) {
  std::string result;
  for (const char c : text) {
    switch (c) {
      case '&':
        result += "&amp;";
        break;
      case '<':
        result += "&lt;";
        break;
      case '>':
        result += "&gt;";
        break;
      default:
        result += c;
    }
  }
  return result;
}

// Lines of at most `width` characters, broken at blanks.
std::vector<std::string> wrapped(const std::string& text, std::size_t width,
                                 std::size_t max_lines) {
  std::vector<std::string> lines;
  std::string rest = text;
  while (rest.size() > width && lines.size() + 1 < max_lines) {
    std::size_t at = rest.rfind(' ', width);
    if (at == std::string::npos || at == 0) at = width;
    lines.push_back(rest.substr(0, at));
    rest.erase(0, at + (rest[at] == ' ' ? 1 : 0));
  }
  if (rest.size() > width) rest = rest.substr(0, width - 1) + "…";
  lines.push_back(rest);
  return lines;
}

// Half-open, in tokens.
struct Rectangle {
  int k0, k1, q0, q1;
};

// Joins equal spans of consecutive bands of rows into one rectangle.
class Bands {
 public:
  void add(int k0, int k1, int q0, int q1) {
    const auto open = open_.find({k0, k1});
    if (open != open_.end() && rectangles_[open->second].q1 == q0) {
      rectangles_[open->second].q1 = q1;
      return;
    }
    open_[{k0, k1}] = rectangles_.size();
    rectangles_.push_back({k0, k1, q0, q1});
    if (rectangles_.size() > kMaxRectangles) {
      throw Error(Errc::invalid_argument,
                  fmt::format("more than {} rectangles to draw: take larger --block-m and "
                              "--block-n, or shorter sequences",
                              kMaxRectangles));
    }
  }
  const std::vector<Rectangle>& rectangles() const { return rectangles_; }

 private:
  std::vector<Rectangle> rectangles_;
  std::map<std::pair<int, int>, std::size_t> open_;
};

struct Tiles {
  Bands partial, full;
  Bands visible;  // elements in partial tiles
  pattern::TileCounts counts;
};

Tiles tiles_of(const Mask& mask, const Geometry& geometry, int block_m, int block_n) {
  constexpr double kMostSteps = 1e8;  // about two seconds
  pattern::Budget budget(kMostSteps);
  Tiles result;
  const bool elements = std::max(geometry.seqlen_q, geometry.seqlen_k) <= kFewElements;
  const KeyTiles tiles{block_n, geometry.seqlen_k};
  for (int q0 = 0; q0 < geometry.seqlen_q; q0 += block_m) {
    const QueryRows rows{q0, std::min(q0 + block_m, geometry.seqlen_q)};
    std::vector<Span> partial;
    for (int n = 0; n < tiles.count();) {
      const Run run = pattern::seek(mask, geometry, rows, tiles, n, budget);
      if (budget.is_spent()) {
        throw Error(Errc::invalid_argument,
                    fmt::format("the tiles of {} take too long to find at {} x {}: take shorter "
                                "sequences, or leave --svg out",
                                mask.text(), geometry.seqlen_q, geometry.seqlen_k));
      }
      const Span keys{n * block_n, std::min(run.end * block_n, geometry.seqlen_k)};
      result.counts.add(run.kind, run.end - n);
      if (run.kind == TileKind::full) result.full.add(keys.lo, keys.hi, rows.begin, rows.end);
      if (run.kind == TileKind::partial) {
        result.partial.add(keys.lo, keys.hi, rows.begin, rows.end);
        partial.push_back(keys);
      }
      n = run.end;
    }
    for (int q = rows.begin; elements && q < rows.end; ++q) {
      for (const Span& span : pattern::row_spans(mask, geometry, q)) {
        for (const Span& keys : partial) {
          const Span seen{std::max(span.lo, keys.lo), std::min(span.hi, keys.hi)};
          if (seen.lo < seen.hi) result.visible.add(seen.lo, seen.hi, q, q + 1);
        }
      }
    }
  }
  return result;
}

class Picture {
 public:
  Picture(const Geometry& geometry, int block_m, int block_n, double share)
      : geometry_(geometry),
        block_m_(block_m),
        block_n_(block_n),
        share_(share),
        pixels_per_token_(kSide / std::max(geometry.seqlen_q, geometry.seqlen_k)),
        width_(std::max(kShortest, geometry.seqlen_k * pixels_per_token_)),
        height_(std::max(kShortest, geometry.seqlen_q * pixels_per_token_)) {}

  double panel_width() const { return kLeftMargin + std::max(width_, 0.6 * kSide) + kRightMargin; }
  double panel_height() const { return kTopMargin + height_ + kBottomMargin; }

  std::string panel(double left, double top, const HeadGroup& group) const {
    const Tiles tiles = tiles_of(group.mask, group.geometry, block_m_, block_n_);
    const Counts counts = count_or_estimate(group.mask, group.geometry, block_m_, block_n_, share_);
    const double elements = static_cast<double>(geometry_.seqlen_q) * geometry_.seqlen_k;
    std::string svg = fmt::format("<g class=\"panel\" transform=\"translate({:.2f} {:.2f})\">\n",
                                  left + kLeftMargin, top + kTopMargin);
    svg += fmt::format("<text class=\"title\" y=\"-70\">{} {}</text>\n",
                       group.heads.size() == 1 ? "head" : "heads", ranges_text(group.heads));
    double y = -52;
    const auto width = static_cast<std::size_t>((panel_width() - kLeftMargin) / 6.7);
    for (const std::string& line : wrapped(group.mask.text(), width, 2)) {
      svg += fmt::format("<text class=\"mask\" y=\"{:.0f}\">{}</text>\n", y, escaped(line));
      y += 14;
    }
    svg += fmt::format("<rect class=\"empty\" width=\"{:.2f}\" height=\"{:.2f}\"/>\n", width_,
                       height_);
    svg += path("partial", tiles.partial) + path("visible", tiles.visible) +
           path("full", tiles.full) + grid();
    svg += fmt::format("<rect class=\"frame\" width=\"{:.2f}\" height=\"{:.2f}\"/>\n", width_,
                       height_);
    svg += axes();
    svg += fmt::format(
        "<text class=\"note\" y=\"{:.2f}\">{} full, {} partial, {} empty tiles; density "
        "{:.4f}{}</text>\n</g>\n",
        height_ + 18, tiles.counts.full, tiles.counts.partial, tiles.counts.empty,
        counts.visible / elements, counts.sampled_rows > 0 ? ", estimated" : "");
    return svg;
  }

 private:
  double x(int k) const { return k * width_ / geometry_.seqlen_k; }
  double y(int q) const { return q * height_ / geometry_.seqlen_q; }

  std::string path(const char* name, const Bands& bands) const {
    if (bands.rectangles().empty()) return {};
    std::string data;
    for (const Rectangle& r : bands.rectangles()) {
      data += fmt::format("M{:.2f} {:.2f}H{:.2f}V{:.2f}H{:.2f}Z", x(r.k0), y(r.q0), x(r.k1),
                          y(r.q1), x(r.k0));
    }
    return fmt::format("<path class=\"{}\" d=\"{}\"/>\n", name, data);
  }

  // Lines between tiles, where they are large enough to be told apart.
  std::string grid() const {
    if (std::min(x(block_n_), y(block_m_)) < kLeastForGrid) return {};
    std::string data;
    for (int k = block_n_; k < geometry_.seqlen_k; k += block_n_) {
      data += fmt::format("M{:.2f} 0V{:.2f}", x(k), height_);
    }
    for (int q = block_m_; q < geometry_.seqlen_q; q += block_m_) {
      data += fmt::format("M0 {:.2f}H{:.2f}", y(q), width_);
    }
    return data.empty() ? "" : fmt::format("<path class=\"grid\" d=\"{}\"/>\n", data);
  }

  // Numbers of tokens: about four steps, each a power of two.
  static int tick_step(int length, double pixels) {
    const int steps = std::max(1, static_cast<int>(pixels / 80));
    return static_cast<int>(
        std::bit_ceil(static_cast<unsigned>(std::max(1, ceil_div(length, steps)))));
  }

  std::string axes() const {
    std::string svg;
    const int k_step = tick_step(geometry_.seqlen_k, width_);
    for (int k = 0; k <= geometry_.seqlen_k; k += k_step) {
      svg += fmt::format(
          "<path class=\"tick\" d=\"M{0:.2f} -4V0\"/><text class=\"tick across\" "
          "x=\"{0:.2f}\" y=\"-8\">{1}</text>\n",
          x(k), k);
    }
    const int q_step = tick_step(geometry_.seqlen_q, height_);
    for (int q = 0; q <= geometry_.seqlen_q; q += q_step) {
      svg += fmt::format(
          "<path class=\"tick\" d=\"M-4 {0:.2f}H0\"/><text class=\"tick down\" "
          "x=\"-8\" y=\"{1:.2f}\">{2}</text>\n",
          y(q), y(q) + 3.5, q);
    }
    svg +=
        fmt::format("<text class=\"axis across\" x=\"{:.2f}\" y=\"-22\">keys</text>\n", width_ / 2);
    svg += fmt::format(
        "<text class=\"axis across\" transform=\"translate(-58 {:.2f}) rotate(-90)\">queries"
        "</text>\n",
        height_ / 2);
    return svg;
  }

  Geometry geometry_;
  int block_m_, block_n_;
  double share_;  // of the time for counting that a panel may take
  double pixels_per_token_, width_, height_;
};

std::string style() {
  return fmt::format(
      "<style>\n"
      "text {{ font: 12px system-ui, 'Segoe UI', 'DejaVu Sans', sans-serif; fill: {ink}; }}\n"
      ".heading {{ font-size: 17px; font-weight: 600; }}\n"
      ".title {{ font-size: 14px; font-weight: 600; }}\n"
      ".mask {{ font: 11px 'SF Mono', Menlo, 'DejaVu Sans Mono', monospace; }}\n"
      ".note, .axis, text.tick {{ fill: {faint}; font-size: 11px; }}\n"
      ".across {{ text-anchor: middle; }}\n"
      ".down {{ text-anchor: end; }}\n"
      "path.tick {{ stroke: {faint}; stroke-width: 1; }}\n"
      ".empty {{ fill: {empty}; }}\n"
      ".partial {{ fill: {partial}; }}\n"
      ".visible {{ fill: {visible}; }}\n"
      ".full {{ fill: {full}; }}\n"
      ".partial, .visible, .full {{ shape-rendering: crispEdges; }}\n"
      ".grid {{ stroke: {paper}; stroke-width: 0.8; stroke-opacity: 0.75; fill: none; }}\n"
      ".frame {{ fill: none; stroke: {ink}; stroke-width: 1; }}\n"
      "</style>\n",
      fmt::arg("ink", kInk), fmt::arg("faint", kFaintInk), fmt::arg("empty", kEmpty),
      fmt::arg("partial", kPartial), fmt::arg("visible", kInPartial), fmt::arg("full", kFull),
      fmt::arg("paper", kPaper));
}

std::string legend(double left, double top, bool elements) {
  struct Entry {
    const char* name;
    const char* text;
    double width;
  };
  std::vector<Entry> entries{{"full", "full tile", 86}, {"partial", "partial tile", 104}};
  if (elements) entries.push_back({"visible", "visible in a partial tile", 174});
  entries.push_back({"empty", "empty, never visited", 0});
  std::string svg =
      fmt::format("<g class=\"legend\" transform=\"translate({:.2f} {:.2f})\">\n", left, top);
  double at = 0;
  for (const Entry& entry : entries) {
    svg += fmt::format(
        "<rect class=\"{}\" x=\"{:.0f}\" y=\"-10\" width=\"12\" height=\"12\"/>"
        "<text x=\"{:.0f}\">{}</text>\n",
        entry.name, at, at + 18, entry.text);
    at += entry.width + 18;
  }
  return svg + "</g>\n";
}

}  // namespace

std::string svg_picture(const Pattern& pattern, const std::vector<HeadGroup>& groups,
                        const Geometry& geometry, int block_m, int block_n) {
  if (geometry.seqlen_q == 0 || geometry.seqlen_k == 0) {
    throw Error(Errc::invalid_argument, fmt::format("{} queries and {} keys leave nothing to draw",
                                                    geometry.seqlen_q, geometry.seqlen_k));
  }
  const auto tiles = static_cast<std::size_t>(ceil_div(geometry.seqlen_q, block_m)) *
                     static_cast<std::size_t>(ceil_div(geometry.seqlen_k, block_n));
  if (tiles > kMaxTiles) {
    throw Error(Errc::invalid_argument,
                fmt::format("{} tiles of {} x {} are too many to draw, the most are {}: take "
                            "larger --block-m and --block-n, or shorter sequences",
                            tiles, block_m, block_n, kMaxTiles));
  }

  const Picture picture(geometry, block_m, block_n, 1.0 / static_cast<double>(groups.size()));
  long shown = 0;
  std::size_t num_heads = 0;
  for (const HeadGroup& group : groups) {
    shown += group.heads.empty() ? 0 : 1;
    num_heads += group.heads.size();
  }
  const auto columns = std::min<long>(shown, kMaxColumns);
  const double width = std::max(560.0, picture.panel_width() * static_cast<double>(columns));
  const double height =
      kHeader + picture.panel_height() * static_cast<double>((shown + columns - 1) / columns);

  std::string svg = fmt::format(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{0:.0f}\" height=\"{1:.0f}\" "
      "viewBox=\"0 0 {0:.0f} {1:.0f}\">\n<title>{2}</title>\n",
      width, height, escaped(pattern.text()));
  svg += style();
  svg += fmt::format("<rect width=\"100%\" height=\"100%\" fill=\"{}\"/>\n", kPaper);
  svg += fmt::format("<text class=\"heading\" x=\"24\" y=\"34\">{} queries × {} keys</text>\n",
                     geometry.seqlen_q, geometry.seqlen_k);
  svg += fmt::format("<text class=\"note\" x=\"24\" y=\"54\">tiles of {} × {}, {} head{}</text>\n",
                     block_m, block_n, num_heads, num_heads == 1 ? "" : "s");
  svg += legend(24, 82, std::max(geometry.seqlen_q, geometry.seqlen_k) <= kFewElements);
  long index = 0;
  for (const HeadGroup& group : groups) {
    if (group.heads.empty()) continue;
    svg += picture.panel(static_cast<double>(index % columns) * picture.panel_width(),
                         kHeader + static_cast<double>(index / columns) * picture.panel_height(),
                         group);
    ++index;
  }
  return svg + "</svg>\n";
}

}  // namespace girih::tools
