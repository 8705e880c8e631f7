// Models from a line of text.

#include "nn/model_factory.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "kernels/error.h"
#include "nn/nn.h"
#include "tensor/context.h"
#include "tests/nn/errors.h"

namespace tessera::nn {
namespace {

TEST(ModelFactory, BuildsWhatTheTextSays) {
  const DeviceScope scope(meta);
  struct Case {
    const char* text;
    const char* description;
  };
  for (const Case& c : std::vector<Case>{
           {"gpt2", "family=gpt2,layers=12,heads=12,width=768,context=1024,vocab=500,dropout=0"},
           {"gpt2-medium", "family=gpt2,layers=24,heads=16,width=1024,context=1024,vocab=500,dropout=0"},
           {"gpt2,context=256,dropout=0.1",
            "family=gpt2,layers=12,heads=12,width=768,context=256,vocab=500,dropout=0.1"},
           {"layers=4,heads=2,width=16",
            "family=gpt2,layers=4,heads=2,width=16,context=1024,vocab=500,dropout=0"},
           {" layers = 4 , heads=2, width=16 , vocab=512 ",
            "family=gpt2,layers=4,heads=2,width=16,context=1024,vocab=512,dropout=0"},
           {"family=llama,layers=2,heads=4,width=32",
            "family=llama,layers=2,heads=4,kv_heads=4,width=32,hidden=96,context=1024,vocab=500,rotary_base="
            "10000,"
            "epsilon=1e-05,tied=0,dropout=0"},
           {"llama-1b,kv_heads=4,tied=0",
            "family=llama,layers=16,heads=32,kv_heads=4,width=2048,hidden=8192,context=8192,vocab=500,"
            "rotary_base=500000,epsilon=1e-05,tied=0,dropout=0"},
           {"llama-15m,heads=3",
            "family=llama,layers=6,heads=3,kv_heads=3,width=288,hidden=768,context=256,vocab=500,"
            "rotary_base=10000,epsilon=1e-05,tied=1,dropout=0"},
       }) {
    EXPECT_EQ(make_language_model(c.text, 500)->description(), c.description) << c.text;
  }
}

TEST(ModelFactory, ADescriptionBuildsTheSameModel) {
  const DeviceScope scope(meta);
  for (const std::string& name : language_model_names()) {
    const auto model = make_language_model(name, 300);
    const auto again = make_language_model(model->description(), 300);
    EXPECT_EQ(again->description(), model->description());
    EXPECT_EQ(again->num_parameters(), model->num_parameters()) << name;
    EXPECT_EQ(again->context(), model->context()) << name;
  }
}

TEST(ModelFactory, NamesWhatIsWrongAndTheNearestThatIsRight) {
  const DeviceScope scope(meta);
  struct Case {
    const char* text;
    const char* part;
  };
  for (const Case& c : std::vector<Case>{
           {"gpt3", "there is no model 'gpt3'; did you mean 'gpt2'?"},
           {"gpt2-mdium", "did you mean 'gpt2-medium'?"},
           {"", "is not of the form key=value"},
           {"gpt2,", "'' is not of the form key=value"},
           {"gpt2,llama-1b", "'llama-1b' is not of the form key=value"},
           {"gpt2,layer=3", "unknown key 'layer'; did you mean 'layers'?"},
           {"gpt2,kv_heads=3", "unknown key 'kv_heads'"},
           {"gpt2,context=256,context=512", "context is given twice"},
           {"gpt2,layers=many", "layers must be a whole number from 1 on, but it is 'many'"},
           {"gpt2,layers=0", "layers must be a whole number from 1 on, but it is '0'"},
           {"gpt2,layers=3.5", "but it is '3.5'"},
           {"gpt2,layers=", "but it is ''"},
           {"gpt2,layers=99999999999999999999", "but it is '99999999999999999999'"},
           {"gpt2,dropout=nan", "dropout must be a number from 0 on, but it is 'nan'"},
           {"gpt2,dropout=-0.1", "dropout must be a number from 0 on"},
           {"gpt2,dropout=1.5", "1.5"},
           {"gpt2,vocab=100", "vocab=100 is smaller than the 500 tokens of the data"},
           {"gpt2,family=llama", "gpt2 is of family gpt2, not llama"},
           {"family=bert,layers=1,heads=1,width=1", "unknown family 'bert'; the families are gpt2 and llama"},
           {"layers=4,heads=2", "width is missing"},
           {"layers=4,heads=3,width=16", "width = 16 and heads = 3"},
           {"family=llama,layers=1,heads=4,kv_heads=3,width=16", "heads = 4 and kv_heads = 3"},
           {"family=llama,layers=1,heads=16,width=16", "head"},
           {"llama-15m,tied=2", "tied must be 0 or 1, but it is 2"},
       }) {
    expect_error<ConfigError>([&] { (void)make_language_model(c.text, 500); }, c.part);
  }
}

}  // namespace
}  // namespace tessera::nn
