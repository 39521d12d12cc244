// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "quarry/config.h"
#include "quarry/indexer.h"
#include "quarry/log.h"
#include "quarry/status.h"
#include "quarry/tensor.h"
#include "quarry/version.h"
