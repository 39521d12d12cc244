// SPDX-License-Identifier: Apache-2.0
//
// The few SVG elements a chart needs.
#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace quarry::tools {

/// `value` as text on an axis, and the values an axis from `low` to `high` is marked at
/// (multiples of 1, 2 or 5 times a power of ten, at most `most` of them).
std::string tick_label(double value);
std::vector<double> ticks(double low, double high, int most);

/// "#rrggbb" of a sequential colour scale from near white (0) to dark blue (1).
std::string density_colour(double fraction);

/// A linear map from values to pixels.
struct Axis {
  double low = 0, high = 1;  ///< values
  double from = 0, to = 1;   ///< pixels
  double at(double value) const { return from + (value - low) / (high - low) * (to - from); }
  /// at(), kept inside the axis.
  double clamped(double value) const;
};

enum class Anchor { start, middle, end };

/// A document under construction; coordinates in pixels.
class Svg {
 public:
  using Points = std::vector<std::pair<double, double>>;

  Svg(double width, double height);

  void text(double x, double y, std::string_view content, double size, std::string_view colour,
            Anchor anchor = Anchor::start, bool bold = false);
  void vertical_text(double x, double y, std::string_view content, double size,
                     std::string_view colour);
  void rect(double x, double y, double width, double height, std::string_view fill,
            double opacity = 1);
  /// `dash` as in stroke-dasharray, empty for a solid line.
  void line(double x1, double y1, double x2, double y2, std::string_view colour, double width,
            std::string_view dash = {});
  void polyline(const Points& points, std::string_view colour, double width,
                std::string_view dash = {});
  void dots(const Points& points, std::string_view colour, double radius, double opacity);
  /// Same-coloured rectangles as one path: small even for thousands.
  void cells(const Points& corners, double width, double height, std::string_view fill);

  /// The whole document.
  std::string finish() const;

 private:
  std::string body_;
  double width_, height_;
};

}  // namespace quarry::tools
