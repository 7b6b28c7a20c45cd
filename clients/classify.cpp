// Label images with an exported symbol and MXNet's library alone.
//
//     classify FOLDER IMAGE [IMAGE ...]
//
// FOLDER is what `scripts/export_model.py --format symbol` (or int8) wrote. Its model.json says how
// to prepare an image; this program does no more than that, and is meant to be copied and changed.
// Wrong values in model.json and damaged files (SHA-256) are refused. That does not help against a
// hostile symbol: MXNet follows whatever addresses it holds, so only give it what you exported
// yourself, or what gluon_resnest's predict.py takes, which checks it.
// The Makefile beside it builds it with the headers and the library of MXNet's Python package.
// Images are decoded and resized by MXNet's own operators. What these decode otherwise than the
// network's training did is refused: this program reads JPEG, PNG and BMP.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <iostream>
#include <map>
#include <numeric>
#include <stdexcept>
#include <string>
#include <vector>

#include <mxnet/c_api.h>
#include <mxnet/c_predict_api.h>
#include <nnvm/c_api.h>

#include "card.h"

namespace {

constexpr int kShown = 5;
constexpr int kInterLinear = 1, kInterCubic = 2, kInterArea = 3;  // as OpenCV numbers them
constexpr int kColor = 1, kIgnoreOrientation = 128;               // the same
constexpr uint64_t kMostPixels = 1 << 27;
constexpr int kUint8 = 3;                                         // as MXNet numbers types

void check(int code, const std::string& doing) {
  if (code == 0) return;
  std::string reason = MXGetLastError();
  // MXNet's errors go on with a stack trace.
  const auto last = reason.find_last_not_of(" \n");
  reason = reason.substr(0, last == std::string::npos ? 0 : last + 1);
  const auto line = reason.rfind('\n');
  throw std::runtime_error(doing + ": " +
                           (line == std::string::npos ? reason : reason.substr(line + 1)));
}

// ---- images ----

struct Image {
  int height, width;
  std::vector<uint8_t> pixels;  // (height, width, 3), RGB

  Image centre(int rows, int columns) const {
    Image part{rows, columns, {}};
    const int top = (height - rows) / 2, left = (width - columns) / 2;
    for (int y = 0; y < rows; ++y) {
      const auto begin = pixels.begin() + 3 * ((top + y) * static_cast<size_t>(width) + left);
      part.pixels.insert(part.pixels.end(), begin, begin + 3 * columns);
    }
    return part;
  }
};

class Array {  // an NDArray of MXNet
 public:
  explicit Array(NDArrayHandle handle) : handle_(handle) {}
  explicit Array(const Image& image) {
    const uint32_t shape[] = {static_cast<uint32_t>(image.height),
                              static_cast<uint32_t>(image.width), 3};
    check(MXNDArrayCreateEx(shape, 3, 1, 0, 0, kUint8, &handle_), "an image's memory");
    check(MXNDArraySyncCopyFromCPU(handle_, image.pixels.data(), image.pixels.size()), "copying");
  }
  Array(const Array&) = delete;
  Array(Array&& other) : handle_(other.handle_) { other.handle_ = nullptr; }
  ~Array() {
    if (handle_ != nullptr) MXNDArrayFree(handle_);
  }

  Image image() const {
    uint32_t dimensions;
    const uint32_t* shape;
    check(MXNDArrayGetShape(handle_, &dimensions, &shape), "an image's shape");
    Image image{static_cast<int>(shape[0]), static_cast<int>(shape[1]), {}};
    image.pixels.resize(3 * static_cast<size_t>(image.height) * image.width);
    check(MXNDArraySyncCopyToCPU(handle_, image.pixels.data(), image.pixels.size()), "copying");
    return image;
  }

  NDArrayHandle handle() const { return handle_; }

 private:
  NDArrayHandle handle_ = nullptr;
};

// An operator of MXNet with one output.
Array invoke(const char* name, std::vector<NDArrayHandle> inputs,
             const std::map<std::string, std::string>& parameters) {
  OpHandle op;
  check(NNGetOpHandle(name, &op), name);
  std::vector<const char*> keys, values;
  for (const auto& parameter : parameters) {
    keys.push_back(parameter.first.c_str());
    values.push_back(parameter.second.c_str());
  }
  int count = 0;
  NDArrayHandle* outputs = nullptr;
  check(MXImperativeInvoke(op, inputs.size(), inputs.data(), &count, &outputs, keys.size(),
                           keys.data(), values.data()), name);
  return Array(outputs[0]);
}

// A whole number at `at` of a file's bytes.
uint32_t number(const std::string& bytes, size_t at, int count, bool little = false) {
  if (at > bytes.size() || bytes.size() - at < static_cast<size_t>(count)) {
    throw std::runtime_error("it ends early");
  }
  uint32_t value = 0;
  for (int i = 0; i < count; ++i) {
    value = value << 8 | static_cast<uint8_t>(bytes[at + (little ? count - 1 - i : i)]);
  }
  return value;
}

// EXIF orientation, 1 to 8, of EXIF data: a TIFF header and a first directory of 12 bytes an entry.
int exif_orientation(const std::string& exif) {
  try {
    const bool little = exif.compare(0, 2, "II") == 0;
    const size_t directory = number(exif, 4, 4, little);
    const uint32_t entries = number(exif, directory, 2, little);
    for (uint32_t i = 0; i < entries; ++i) {
      const size_t entry = directory + 2 + 12 * i;
      if (number(exif, entry, 2, little) != 0x0112) continue;
      const uint32_t value = number(exif, entry + 8, 2, little);
      return value >= 1 && value <= 8 ? value : 1;
    }
  } catch (const std::runtime_error&) {  // damaged, which costs no pixels
  }
  return 1;
}

struct Header {
  uint32_t width = 0, height = 0;
  int orientation = 1, bits = 8;
};

Header jpeg_header(const std::string& bytes) {
  Header header;
  size_t at = 2;
  for (uint32_t kind = 0; kind != 0xDA;) {  // up to the pixels
    while (number(bytes, at + 1, 1) == 0xFF) ++at;
    kind = number(bytes, at + 1, 1);
    const uint32_t length = number(bytes, at + 2, 2);
    const bool frame = kind >= 0xC0 && kind <= 0xCF && kind != 0xC4 && kind != 0xC8 && kind != 0xCC;
    if (frame) {
      header.height = number(bytes, at + 5, 2);
      header.width = number(bytes, at + 7, 2);
    } else if (kind == 0xE1 && bytes.compare(at + 4, 6, "Exif\0\0", 6) == 0) {
      header.orientation = exif_orientation(bytes.substr(at + 10, length));
    }
    at += 2 + length;
  }
  if (bytes.find("\xFF\xD9", at) == std::string::npos) throw std::runtime_error("it ends early");
  return header;
}

Header png_header(const std::string& bytes) {
  Header header;
  header.width = number(bytes, 16, 4);
  header.height = number(bytes, 20, 4);
  header.bits = number(bytes, 24, 1);
  for (size_t at = 8;;) {  // the chunks
    const uint32_t length = number(bytes, at, 4);
    const std::string kind = bytes.substr(at + 4, 4);
    if (kind == "IEND") return header;
    if (kind == "eXIf") header.orientation = exif_orientation(bytes.substr(at + 8, length));
    at += 12 + static_cast<size_t>(length);
  }
}

Header image_header(const std::string& bytes) {
  if (bytes.compare(0, 3, "\xFF\xD8\xFF") == 0) return jpeg_header(bytes);
  if (bytes.compare(0, 8, "\x89PNG\r\n\x1A\n") == 0) return png_header(bytes);
  if (bytes.compare(0, 2, "BM") != 0) throw std::runtime_error("it is not JPEG, PNG or BMP");
  Header header;
  header.width = number(bytes, 18, 4, true);
  header.height = std::abs(static_cast<int32_t>(number(bytes, 22, 4, true)));
  return header;
}

// An image turned as its EXIF orientation says: transposed for 5 to 8, then mirrored.
Image turned(const Image& image, int orientation) {
  if (orientation == 1) return image;
  const bool transposed = orientation >= 5;
  const bool down = orientation == 3 || orientation == 4 || orientation >= 7;
  const bool across = orientation == 2 || orientation == 3 || orientation == 6 || orientation == 7;
  Image upright = transposed ? Image{image.width, image.height, {}}
                             : Image{image.height, image.width, {}};
  upright.pixels.reserve(image.pixels.size());
  for (int y = 0; y < upright.height; ++y) {
    for (int x = 0; x < upright.width; ++x) {
      const size_t row = down ? upright.height - 1 - y : y;
      const size_t column = across ? upright.width - 1 - x : x;
      const size_t place = transposed ? column * image.width + row : row * image.width + column;
      const auto pixel = image.pixels.begin() + 3 * place;
      upright.pixels.insert(upright.pixels.end(), pixel, pixel + 3);
    }
  }
  return upright;
}

Image read_image(const std::string& path) {
  const std::string bytes = read_file(path);
  try {
    const Header header = image_header(bytes);
    if (uint64_t{header.width} * header.height > kMostPixels) {
      throw std::runtime_error("it has too many pixels; shrink it");
    }
    // MXNet turns no image as its EXIF data says; the flag is for builds with another OpenCV.
    const std::string flag = std::to_string(kColor | kIgnoreOrientation);
    const Image image = [&] {
      try {
        return invoke("_cvimread", {}, {{"filename", path}, {"flag", flag}, {"to_rgb", "1"}})
            .image();
      } catch (const std::runtime_error&) {
        throw std::runtime_error("it is damaged");
      }
    }();
    if (header.bits == 16 &&
        *std::max_element(image.pixels.begin(), image.pixels.end()) < 16) {
      throw std::runtime_error("it has 12 bits in 16, of which MXNet reads 4; convert it to 8");
    }
    return turned(image, header.orientation);
  } catch (const std::runtime_error& error) {
    throw std::runtime_error(path + " is no image that MXNet reads: " + error.what());
  }
}

Image prepare(const std::string& path, const Card& card) {
  Image image = read_image(path);
  const int longest = card.longest_sides_ratio * std::min(image.height, image.width);
  image = image.centre(std::min(image.height, longest), std::min(image.width, longest));
  const int64_t shorter = std::min(image.height, image.width);
  const int height = image.height * static_cast<int64_t>(card.shorter_side) / shorter;
  const int width = image.width * static_cast<int64_t>(card.shorter_side) / shorter;
  if (height != image.height || width != image.width) {
    const double down = static_cast<double>(image.height) / height;
    const double across = static_cast<double>(image.width) / width;
    const bool shrinks = std::min(down, across) >= 1 && std::max(down, across) >= 2;
    // Networks of more than 256 pixels were trained with Pillow's bicubic filter, which MXNet
    // lacks: OpenCV's skips pixels where the image shrinks. Areas come close.
    int interpolation = shrinks ? kInterArea : kInterLinear;
    if (card.bicubic) interpolation = std::min(down, across) > 1 ? kInterArea : kInterCubic;
    const Array array(image);
    image = invoke("_cvimresize", {array.handle()},
                   {{"w", std::to_string(width)}, {"h", std::to_string(height)},
                    {"interp", std::to_string(interpolation)}}).image();
  }
  return image.centre(card.size, card.size);
}

// ---- the network ----

class Network {
 public:
  Network(const std::string& folder, const Card& card) : card_(card) {
    const std::string symbol = read_exported(folder, card, 0);
    const std::string parameters = read_exported(folder, card, 1);
    const uint32_t size = card.size;
    const uint32_t bounds[] = {0, 4};
    const std::vector<uint32_t> shape = card.pixels ? std::vector<uint32_t>{1, size, size, 3}
                                                    : std::vector<uint32_t>{1, 3, size, size};
    const char* name = card.input.c_str();
    const int type = kUint8;
    check(MXPredCreateEx(symbol.c_str(), parameters.data(), parameters.size(), 1, 0, 1, &name,
                         bounds, shape.data(), card.pixels ? 1 : 0, &name, &type, &handle_),
          folder + " cannot be loaded");
  }
  Network(const Network&) = delete;
  ~Network() { MXPredFree(handle_); }

  // Class probabilities of a crop.
  std::vector<float> operator()(const Image& crop) const {
    const size_t count = crop.pixels.size();
    if (card_.pixels) {
      // The function's type says float; what it copies is as many values of the input's type.
      set_input(reinterpret_cast<const float*>(crop.pixels.data()), count);
    } else {
      std::vector<float> input(count);  // (3, H, W)
      for (size_t i = 0; i < count; ++i) {
        const int channel = i % 3;
        input[channel * (count / 3) + i / 3] =
            (crop.pixels[i] / 255.0f - card_.mean[channel]) / card_.std[channel];
      }
      set_input(input.data(), count);
    }
    check(MXPredForward(handle_), "the network");
    std::vector<float> values(card_.class_names.size());
    check(MXPredGetOutput(handle_, 0, values.data(), values.size()), "the network's output");
    const float largest = *std::max_element(values.begin(), values.end());
    for (float& value : values) value = std::exp(value - largest);
    const float sum = std::accumulate(values.begin(), values.end(), 0.0f);
    for (float& value : values) value /= sum;
    return values;
  }

 private:
  void set_input(const float* values, size_t count) const {
    check(MXPredSetInput(handle_, card_.input.c_str(), values, count), "the network's input");
  }

  Card card_;
  PredictorHandle handle_ = nullptr;
};

void classify(const std::string& path, const Card& card, const Network& network) {
  const std::vector<float> found = network(prepare(path, card));
  std::vector<size_t> order(found.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](size_t a, size_t b) { return found[a] > found[b]; });
  std::cout << path;
  for (size_t i = 0; i < std::min<size_t>(kShown, order.size()); ++i) {
    char share[16];
    std::snprintf(share, sizeof share, "%.2f%%", 100 * found[order[i]]);
    std::cout << '\t' << card.class_names[order[i]] << ' ' << share;
  }
  std::cout << std::endl;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 3) {
    std::cerr << "usage: classify FOLDER IMAGE [IMAGE ...]" << std::endl;
    return 2;
  }
  try {
    const Card card = read_card(argv[1]);
    const Network network(argv[1], card);
    for (int i = 2; i < argc; ++i) classify(argv[i], card, network);
  } catch (const std::exception& error) {
    std::cerr << "error: " << error.what() << std::endl;
    return 2;
  }
}
