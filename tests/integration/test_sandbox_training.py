"""What jobs are made of trains inside, under the limits that jobs get and with no rule loosened."""

from pathlib import Path

import pytest

from rapha.runtime.sandbox import drivers
from rapha.runtime.sandbox.interface import Limits, Spec
from rapha.runtime.sandbox.pyruntime import PythonRuntime, installed

DRIVERS = [
    "bubblewrap",
    pytest.param("gvisor", marks=[pytest.mark.slow, pytest.mark.peer("runsc")]),
]

NUMPY = """
import numpy
random = numpy.random.default_rng(0)
x = random.normal(size=(2000, 20))
y = x @ random.normal(size=20)
weights = numpy.zeros(20)
for _ in range(200):
    weights -= 0.1 * x.T @ (x @ weights - y) / len(x)
print(float(numpy.abs(x @ weights - y).mean()) < 0.01)
"""
TORCH = """
import torch
from torch.utils.data import DataLoader, Dataset
class Numbers(Dataset):
    def __len__(self):
        return 256
    def __getitem__(self, at):
        x = torch.full((8,), at / 256)
        return x, x.sum(0, keepdim=True)
torch.manual_seed(0)
torch.set_num_threads(2)
model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 1))
optimiser = torch.optim.Adam(model.parameters(), 0.02)
losses = []
for _ in range(4):
    for x, y in DataLoader(Numbers(), batch_size=32, shuffle=True, num_workers=2):
        loss = torch.nn.functional.mse_loss(model(x), y)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
torch.save(model.state_dict(), '/rapha/out/model.pt')
print(losses[-1] < losses[0] / 4)
"""
SKLEARN = """
import numpy
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
random = numpy.random.default_rng(0)
x = random.normal(size=(500, 10))
y = (x[:, 0] > 0).astype(int)
forest = RandomForestClassifier(20, n_jobs=2, random_state=0).fit(x, y)
print(min(forest.score(x, y), LogisticRegression().fit(x, y).score(x, y)) > 0.95)
"""
MONAI = """
import torch
from monai.losses import DiceLoss
from monai.networks.nets import UNet
torch.manual_seed(0)
model = UNet(spatial_dims=2, in_channels=1, out_channels=2, channels=(4, 8, 16), strides=(2, 2))
optimiser = torch.optim.Adam(model.parameters(), 0.01)
loss_of = DiceLoss(to_onehot_y=True, softmax=True)
image = torch.rand(2, 1, 64, 64)
label = (image > 0.5).float()
losses = []
for _ in range(5):
    loss = loss_of(model(image), label)
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()
    losses.append(loss.item())
print(losses[-1] < losses[0])
"""
JOBS = {
    "numpy": (("numpy",), NUMPY),
    "torch": (("torch", "numpy"), TORCH),
    "scikit-learn": (("scikit-learn", "numpy"), SKLEARN),
    "monai": (("monai", "torch", "numpy"), MONAI),
}


@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize("job", JOBS)
def test_it_trains_under_every_wall(job: str, driver: str, tmp_path: Path) -> None:
    packages, code = JOBS[job]
    if installed(packages) != packages:
        pytest.skip(f"not installed: {', '.join(set(packages) - set(installed(packages)))}")
    sandbox = drivers.driver(driver)
    runtime = PythonRuntime.discover(packages)
    out, log = tmp_path / "out", tmp_path / "log"
    out.mkdir()
    argv = (runtime.python, "-c", code)
    limits = Limits(wall_s=120 if driver == "bubblewrap" else 600)
    outcome = sandbox.start(Spec(argv, runtime.mounts, runtime.env, "/tmp", limits, out=out, log=log)).wait()
    said = log.read_text()
    assert (outcome.exit_code, said.splitlines()[-1:]) == (0, ["True"]), said
    assert {output.name for output in outcome.outputs} == ({"model.pt"} if job == "torch" else set())
