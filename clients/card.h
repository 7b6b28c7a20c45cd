// model.json and the files that it describes, for classify.cpp.

#pragma once

#include <sys/stat.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <fstream>
#include <map>
#include <set>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include <dmlc/json.h>

#include "sha256.h"

inline std::string read_file(const std::string& path) {
  struct stat kind;
  std::ifstream file;
  // A pipe would never end.
  if (stat(path.c_str(), &kind) == 0 && S_ISREG(kind.st_mode)) file.open(path, std::ios::binary);
  std::ostringstream content;
  if (!file.is_open() || !(content << file.rdbuf())) {
    throw std::runtime_error(path + " cannot be read");
  }
  return content.str();
}

struct Leaf {
  std::string value;
  bool is_text;
};

// Every value of a JSON text by its path: {"input": {"shape": [7]}} gives "/input/shape/0" -> "7".
using Leaves = std::map<std::string, Leaf>;

inline void read_leaves(dmlc::JSONReader& reader, std::istream& text, const std::string& path,
                        int depth, Leaves* leaves) {
  if (depth == 0 || leaves->count(path)) throw std::runtime_error("too deep or twice: " + path);
  const int next = (text >> std::ws).peek();
  if (next == '{') {
    std::string key;
    std::set<std::string> keys;
    reader.BeginObject();
    while (reader.NextObjectItem(&key)) {
      if (!keys.insert(key).second) throw std::runtime_error("twice: " + path + "/" + key);
      read_leaves(reader, text, path + "/" + key, depth - 1, leaves);
    }
  } else if (next == '[') {
    reader.BeginArray();
    for (int i = 0; reader.NextArrayItem(); ++i) {
      read_leaves(reader, text, path + "/" + std::to_string(i), depth - 1, leaves);
    }
  } else if (next == '"') {
    Leaf& leaf = (*leaves)[path];
    leaf.is_text = true;
    reader.ReadString(&leaf.value);
  } else {  // a number, true, false or null
    Leaf& leaf = (*leaves)[path];
    leaf.is_text = false;
    while (text.peek() != EOF && !std::strchr(",]} \n\r\t", text.peek())) {
      leaf.value += static_cast<char>(text.get());
    }
    if (leaf.value.empty()) throw std::runtime_error("no value at " + path);
  }
}

struct Card {
  std::vector<std::string> files, digests, class_names;
  std::string input;
  bool pixels;  // or normalised floats
  int size, shorter_side, longest_sides_ratio;
  bool bicubic;
  float mean[3], std[3];
};

// Values of a card within bounds; another value is an error with its path.
class Fields {
 public:
  explicit Fields(const Leaves& leaves) : leaves_(leaves) {}

  std::string text(const std::string& path, const std::vector<std::string>& allowed = {}) const {
    const Leaf& leaf = at(path);
    if (!leaf.is_text || (!allowed.empty() && !std::count(allowed.begin(), allowed.end(),
                                                          leaf.value))) refuse(path);
    return leaf.value;
  }
  double number(const std::string& path, double low, double high) const {
    const Leaf& leaf = at(path);
    if (leaf.is_text || leaf.value.size() > 30 ||
        leaf.value.find_first_not_of("0123456789+-.eE") != std::string::npos) refuse(path);
    const double value = std::stod(leaf.value);
    if (!(low <= value && value <= high)) refuse(path);
    return value;
  }
  int whole(const std::string& path, int low, int high) const {
    const double value = number(path, low, high);
    if (value != std::floor(value)) refuse(path);
    return static_cast<int>(value);
  }
  void same(const std::string& path, const std::string& value, bool is_text) const {
    if (at(path).value != value || at(path).is_text != is_text) refuse(path);
  }
  void shape(const std::string& path, const std::vector<int>& sides) const {
    same(path + "/0", "N", true);
    for (size_t i = 0; i < sides.size(); ++i) {
      same(path + "/" + std::to_string(i + 1), std::to_string(sides[i]), false);
    }
    if (leaves_.count(path + "/" + std::to_string(sides.size() + 1))) refuse(path);
  }

 private:
  const Leaf& at(const std::string& path) const {
    const auto leaf = leaves_.find(path);
    if (leaf == leaves_.end()) refuse(path);
    return leaf->second;
  }
  [[noreturn]] static void refuse(const std::string& path) {
    throw std::runtime_error("wrong or no value at " + path);
  }

  const Leaves& leaves_;
};

inline bool ends_with(const std::string& text, const std::string& end) {
  return text.size() > end.size() && text.compare(text.size() - end.size(), end.size(), end) == 0;
}

inline Card card_of(const Leaves& leaves) {
  const Fields fields(leaves);
  Card card;
  fields.text("/format", {"symbol", "int8"});
  for (const auto& leaf : leaves) {  // in the order of the alphabet: -0000.params, -symbol.json
    if (leaf.first.compare(0, 7, "/files/") != 0) continue;
    card.files.insert(card.files.begin(), leaf.first.substr(7));
    card.digests.insert(card.digests.begin(), fields.text(leaf.first));
    if (card.files[0].find_first_of("/\\:") != std::string::npos) {
      throw std::runtime_error("a file that is not beside it");
    }
  }
  if (card.files.size() != 2 || !ends_with(card.files[0], "-symbol.json") ||
      !ends_with(card.files[1], "-0000.params")) {
    throw std::runtime_error("it does not describe a symbol");
  }
  const int classes = fields.whole("/classes", 1, 1 << 20);
  const bool named = leaves.count("/class_names/0") != 0;
  if (named ? leaves.count("/class_names/" + std::to_string(classes)) != 0
            : !leaves.count("/class_names")) throw std::runtime_error("other class_names");
  if (!named) fields.same("/class_names", "null", false);
  for (int i = 0; i < classes; ++i) {
    const std::string number = std::to_string(i);
    card.class_names.push_back(named ? fields.text("/class_names/" + number) : "class " + number);
  }
  card.pixels = fields.text("/input/dtype", {"uint8", "float32"}) == "uint8";
  card.input = fields.text("/input/name", {card.pixels ? "pixels" : "data"});
  fields.text("/input/color", {"RGB"});
  fields.same("/input/normalization/in_the_graph", card.pixels ? "true" : "false", false);
  for (int i = 0; i < 3; ++i) {
    card.mean[i] = fields.number("/input/normalization/mean/" + std::to_string(i), 0, 1);
    card.std[i] = fields.number("/input/normalization/std/" + std::to_string(i), 0.01, 10);
  }
  card.size = fields.whole("/preprocessing/crop/size", 32, 1 << 13);
  fields.text("/preprocessing/crop/where", {"centre"});
  fields.same("/input_size", std::to_string(card.size), false);
  const int size = card.size;
  fields.shape("/input/shape", card.pixels ? std::vector<int>{size, size, 3}
                                           : std::vector<int>{3, size, size});
  fields.shape("/output/shape", {classes});
  fields.text("/output/values", {"logits"});
  const std::string resize = "/preprocessing/resize/";
  card.shorter_side = fields.whole(resize + "shorter_side", size, 1 << 18);
  card.longest_sides_ratio = fields.whole(resize + "longest_sides_ratio", 1, 16);
  card.bicubic = fields.text(resize + "interpolation", {"bilinear", "bicubic"}) == "bicubic";
  return card;
}

inline Card read_card(const std::string& folder) {
  const std::string path = folder + "/model.json";
  std::string content = read_file(path);
  if (content.compare(0, 3, "\xEF\xBB\xBF") == 0) content.erase(0, 3);  // an editor's mark
  std::istringstream text(content);
  try {
    if (content.size() > 4 << 20) throw std::runtime_error("more than 4 MB");
    dmlc::JSONReader reader(&text);
    Leaves leaves;
    read_leaves(reader, text, "", 8, &leaves);
    return card_of(leaves);
  } catch (const std::exception& error) {
    std::string reason = error.what();
    reason = reason.substr(0, std::min<size_t>(reason.find('\n'), 80));
    throw std::runtime_error(path + " is not the card of an exported symbol (" + reason + ")");
  }
}

// A file of the export, if it is the one that was exported.
inline std::string read_exported(const std::string& folder, const Card& card, int number) {
  const std::string path = folder + "/" + card.files[number];
  const std::string content = read_file(path);
  if (sha256(content) != card.digests[number]) {
    throw std::runtime_error(path + " is not the file that was exported: its SHA-256 is another");
  }
  return content;
}
