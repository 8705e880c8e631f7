// Saves a model that gpt2_train saved so that Hugging Face's transformers loads it, with its tokenizer.
//
//     $ gpt2_export --model run --out exported
//     model       family=gpt2,layers=4,heads=4,width=128,context=256,vocab=2048,dropout=0: 1,088,256 ...
//     output      exported: config.json, model.safetensors (f32), tokenizer.json, tokenizer_config.json
//
//     >>> AutoModelForCausalLM.from_pretrained("exported"), AutoTokenizer.from_pretrained("exported")

#include <fmt/format.h>

#include <cstdint>
#include <map>
#include <string>

#include "data/tokenizer_hugging_face.h"
#include "dist/hugging_face.h"
#include "examples/command_line.h"
#include "examples/gpt2/saved_model.h"
#include "kernels/error.h"
#include "kernels/readable.h"

namespace {

using namespace tessera;

const std::map<std::string, DType> kDTypes{{"f32", kF32}, {"f16", kF16}, {"bf16", kBF16}};

struct Options {
  std::string model = "run";
  std::string out;
  std::string dtype = "f32";
  double largest_file_gb = 5.0;
};

void run(const Options& options) {
  const gpt2::SavedModel saved = gpt2::load_saved_model(options.model);
  dist::SaveHuggingFaceOptions save{.dtype = kDTypes.at(options.dtype)};
  save.largest_file_bytes = static_cast<std::int64_t>(options.largest_file_gb * 1e9);
  save.end_of_text = saved.tokenizer.end_of_text();
  dist::save_hugging_face(options.out, *saved.model, save);
  data::save_hugging_face_tokenizer(options.out, saved.tokenizer);
  fmt::print("model       {}: {} parameters\n", saved.model->description(),
             with_commas(saved.model->num_parameters()));
  fmt::print("output      {}: config.json, model.safetensors ({}), tokenizer.json, tokenizer_config.json\n",
             options.out, options.dtype);
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("Saves a model so that Hugging Face's transformers loads it, with its tokenizer.",
               "gpt2_export");
  app.option_defaults()->multi_option_policy(CLI::MultiOptionPolicy::TakeLast);
  Options options;
  app.add_option("--model", options.model, "Folder that gpt2_train saved to (--out)")->capture_default_str();
  app.add_option("--out", options.out, "Folder for the model; made if it is not there")->required();
  app.add_option("--dtype", options.dtype, "Of the weights: f32, f16 or bf16")
      ->capture_default_str()
      ->check(CLI::IsMember({"f32", "f16", "bf16"}));
  app.add_option("--largest-file", options.largest_file_gb, "GB; a larger model comes in parts")
      ->capture_default_str()
      ->check(examples::at_least(1e-6));
  examples::parse_or_exit(app, argc, argv);
  return examples::run_program("gpt2_export", [&] { run(options); });
}
