// `lowkey calibrate`: text through a model, and out comes a profile (docs/calibration.md).
#pragma once

namespace CLI {
class App;
}

namespace lowkey::cli {

// Registers the subcommand. When it was chosen, its callback does the work and sets `exit_code`: 0 done, 2
// usage, 3 bad input file, 4 runtime failure.
void add_calibrate_command(CLI::App& app, int& exit_code);

}  // namespace lowkey::cli
