import pytest

from langext.training import flops


@pytest.mark.parametrize(
    ("name", "tera"),
    [
        ("NVIDIA L40", 181), ("NVIDIA L40S", 362), ("NVIDIA L4", 121), ("NVIDIA A10", 125), ("NVIDIA A100-SXM4-40GB", 312),
        ("NVIDIA A100 80GB PCIe", 312), ("NVIDIA A40", 149.7), ("NVIDIA H100 80GB HBM3", 989), ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H100 NVL", 835), ("NVIDIA H200", 989), ("NVIDIA H200 NVL", 835), ("NVIDIA GH200 480GB", 989),
        ("NVIDIA B200", 2250), ("NVIDIA GB200", 2500), ("NVIDIA GeForce RTX 4090", 165.2), ("AMD Instinct MI300X", 1307),
    ],
)  # fmt: skip
def test_the_peak_is_that_of_the_very_device(name, tera):
    assert flops.peak(name) == tera * 1e12


@pytest.mark.parametrize(
    "name",
    [
        "NVIDIA A10G", "NVIDIA RTX A4000", "NVIDIA A1000", "NVIDIA GeForce RTX 4090 D", "NVIDIA GeForce RTX 4090 Laptop GPU",
        "NVIDIA GeForce RTX 3090 Ti", "Tesla T4", "Tesla V100-SXM2-16GB", "NVIDIA L400", "NVIDIA H20", "Quadro RTX 6000",
        "NVIDIA A100-SXM4-40GB MIG 1g.5gb", "NVIDIA H100 80GB HBM3 MIG 1g.10gb", "GRID A100-10C", "AMD Instinct MI300A", "",
    ],
)  # fmt: skip
def test_a_device_that_only_looks_like_another_has_no_peak(name):
    assert flops.peak(name) is None
