"""What `02_finetune` calls: methods, chat templates, training examples, engines, trainers, model cards."""

import os
import warnings

# Read when torch, transformers and Unsloth are imported, hence set here, before any of them.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # spinning threads slow small shared machines several times
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("UNSLOTH_DISABLE_STATISTICS", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # bars have no place among a notebook's outputs
os.environ.setdefault("TQDM_DISABLE", "1")  # nor has that of DPO's and KTO's reference
warnings.filterwarnings("ignore", message="IProgress not found")
