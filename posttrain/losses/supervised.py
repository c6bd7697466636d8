from posttrain.losses.reductions import LossOutput
def nll_loss(lp, mask): return LossOutput(-lp*mask, "token_mean", {})
def dft_loss(lp, mask): return LossOutput(-lp*lp.exp().detach()*mask, "token_mean", {})
