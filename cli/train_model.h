// The training module and what it trains against: a model folder as kvstore/calibrate/trainer.h wants it.
#pragma once

#include <filesystem>
#include <memory>

#include "base/result.h"
#include "kvstore/calibrate/trainer.h"

namespace lowkey::cli {

// The trainer of the module beside this executable, which stays loaded. Errors: kUsage in one line when there
// is none (built without libtorch), or one of another build.
Result<std::unique_ptr<kvstore::Trainer>> load_trainer();

// The same from a file.
Result<std::unique_ptr<kvstore::Trainer>> load_trainer(const std::filesystem::path& module);

// Its `weight` reads the mapped files for as long as any copy lives. Errors: as ModelConfig::read and
// SafetensorsReader::open.
Result<kvstore::TrainModel> train_model(const std::filesystem::path& model_dir);

}  // namespace lowkey::cli
