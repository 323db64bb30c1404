// The exported functions of the training module (trainer.h).
#include "kvstore/calibrate/train/basis_trainer.h"

extern "C" {

__attribute__((visibility("default"))) int lowkey_train_interface() {
  return lowkey::kvstore::kTrainInterface;
}

__attribute__((visibility("default"))) lowkey::kvstore::Trainer* lowkey_new_trainer() {
  return new lowkey::kvstore::BasisTrainer();
}

}  // extern "C"
