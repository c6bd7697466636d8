import torch
def k3_kl(logps, ref): return torch.exp(ref-logps)-(ref-logps)-1
