"""`pcl_loss.train` as one of several processes without a GPU each, for which BasicSR asks: run by torchrun."""

import sys
from typing import Any

TWO_RANKS = ("-m", "torch.distributed.run", "--nproc_per_node=2", "--master_port=0", "--standalone", __file__)


def main() -> None:
    import torch
    from torch.nn.parallel import DistributedDataParallel

    from pcl_loss import train

    import basicsr.models.base_model  # isort: skip  (it needs what our import has put back)

    def init(backend: str, **keywords: Any) -> None:
        torch.distributed.init_process_group("gloo", **keywords)

    basicsr.utils.dist_util._init_dist_pytorch = init
    basicsr.models.base_model.BaseModel.model_to_device = lambda self, net: DistributedDataParallel(net)
    sys.argv += ["--launcher", "pytorch"]
    train.main()


if __name__ == "__main__":
    main()
