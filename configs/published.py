"""Every published row that an experiment file stands for.

Numbers are those of the papers, as they print them: LiT, Tables 1-7 with the supplement's Tables
11-14 (IS, precision, recall), and the DiT paper's models after 400K steps. Rows without scores are
in no paper. `ours` is what this project measured; it stays empty until somebody runs the row.
`configs/reproduce.py` makes docs/reproduce.md and the tables in the docstrings of this folder from
here.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """One published row. `config` is FILE:ARGUMENT; `scores` are FID, IS, precision and recall as
    printed, fewer where the paper gives fewer; `ours` likewise, with the date and the hash."""

    table: str
    name: str
    config: str
    scores: str = ""
    cfg: float = 1.0
    ours: str = ""


def _rows(table: str, text: str) -> list[Row]:
    """Lines "name | config | scores [| guidance [| ours]]"."""
    rows = []
    for line in text.strip().splitlines():
        name, config, scores, *rest = (part.strip() for part in line.split("|"))
        cfg, ours = (*rest, "1", "")[:2] if len(rest) != 1 else (rest[0], "")
        rows.append(Row(table, name, config, scores, float(cfg), ours))
    return rows


TABLES = {
    "1": "Attention, from scratch (LiT, Tables 1 and 11)",
    "1+": "Attention beyond the paper's table, from scratch (no published numbers)",
    "2": "Heads, from scratch (LiT, Tables 2 and 12)",
    "3": "Inheritance, LiT-S/2 (LiT, Tables 3 and 13)",
    "4": "Distillation, LiT-S/2: teacher, lambda_1, lambda_2 (LiT, Tables 4 and 14)",
    "5": "The recipe at every size (LiT, Table 5)",
    "DiG": "Gated linear attention, from scratch (LiT, Table 5)",
    "CLEAR": "CLEAR: circular windows, students of the softmax model of their size (no published"
    " numbers)",
    "6": "256 x 256 (LiT, Table 6)",
    "7": "512 x 512 (LiT, Table 7)",
    "DiT": "Baselines (DiT paper, 400K steps)",
    "sources": "Models to start from",
}

ROWS: tuple[Row, ...] = (
    *_rows(
        "1",
        """
        S/2 softmax           | dit_imagenet256:S/2                       | 68.40
        S/2 ReLU linear       | lit_ablation_attention:S/2-relu           | 88.46 15.11 .29 .45
        S/2 ReLU + DWC        | lit_ablation_attention:S/2-relu_dwc       | 63.66 22.16 .38 .58
        S/2 focused ReLU      | lit_ablation_attention:S/2-focused_relu   | 63.05 22.49 .39 .58
        S/2 focused GELU      | lit_ablation_attention:S/2-focused_gelu   | 70.83 19.41 .36 .54
        B/2 softmax           | dit_imagenet256:B/2                       | 43.47
        B/2 ReLU linear       | lit_ablation_attention:B/2-relu           | 56.92 25.80 .42 .59
        B/2 ReLU + DWC        | lit_ablation_attention:B/2-relu_dwc       | 42.11 34.60 .48 .63
        B/2 focused ReLU      | lit_ablation_attention:B/2-focused_relu   | 40.58 35.98 .50 .63
        B/2 focused GELU      | lit_ablation_attention:B/2-focused_gelu   | 58.86 24.23 .42 .57
        """,
    ),
    *_rows(
        "1+",
        """
        S/2 GELU linear       | lit_ablation_attention:S/2-gelu           |
        S/2 GELU + DWC        | lit_ablation_attention:S/2-gelu_dwc       |
        S/2 focused, no DWC   | lit_ablation_attention:S/2-focused_relu_plain |
        S/2 SANA              | lit_ablation_attention:S/2-sana           |
        S/2 CLEAR, r = 8      | lit_ablation_attention:S/2-window         |
        B/2 GELU linear       | lit_ablation_attention:B/2-gelu           |
        B/2 GELU + DWC        | lit_ablation_attention:B/2-gelu_dwc       |
        B/2 focused, no DWC   | lit_ablation_attention:B/2-focused_relu_plain |
        B/2 SANA              | lit_ablation_attention:B/2-sana           |
        B/2 CLEAR, r = 8      | lit_ablation_attention:B/2-window         |
        """,
    ),
    *_rows(
        "2",
        """
        S/2, 1 head           | lit_ablation_heads:S/2-1                  | 64.42 21.54 .380 .574
        S/2, 2 heads          | lit_ablation_heads:S/2-2                  | 63.24 22.07 .385 .570
        S/2, 3 heads          | lit_ablation_heads:S/2-3                  | 63.21 22.08 .386 .583
        S/2, 6 heads          | lit_ablation_heads:S/2-6                  | 63.66 22.16 .383 .580
        S/2, 48 heads         | lit_ablation_heads:S/2-48                 | 78.76 17.46 .322 .482
        S/2, 96 heads         | lit_ablation_heads:S/2-96                 | 116.00 11.49 .224 .261
        B/2, 1 head           | lit_ablation_heads:B/2-1                  | 41.77 34.78 .487 .631
        B/2, 2 heads          | lit_ablation_heads:B/2-2                  | 41.39 35.59 .494 .631
        B/2, 3 heads          | lit_ablation_heads:B/2-3                  | 40.86 35.79 .497 .629
        B/2, 12 heads         | lit_ablation_heads:B/2-12                 | 42.11 34.60 .484 .631
        B/2, 96 heads         | lit_ablation_heads:B/2-96                 | 68.30 20.45 .375 .531
        B/2, 192 heads        | lit_ablation_heads:B/2-192                | 112.39 12.07 .240 .282
        L/2, 1 head           | lit_ablation_heads:L/2-1                  | 24.46 57.36 .600 .637
        L/2, 2 heads          | lit_ablation_heads:L/2-2                  | 24.37 57.02 .599 .622
        L/2, 4 heads          | lit_ablation_heads:L/2-4                  | 24.04 59.02 .597 .636
        L/2, 16 heads         | lit_ablation_heads:L/2-16                 | 25.25 54.67 .587 .632
        XL/2, 1 head          | lit_ablation_heads:XL/2-1                 | 21.13 65.06 .619 .632
        XL/2, 2 heads         | lit_ablation_heads:XL/2-2                 | 20.66 65.39 .624 .636
        XL/2, 4 heads         | lit_ablation_heads:XL/2-4                 | 20.82 65.52 .619 .632
        XL/2, 16 heads        | lit_ablation_heads:XL/2-16                | 21.69 63.06 .617 .628
        """,
    ),
    *_rows(
        "3",
        """
        from 200K             | lit_ablation_inheritance:200K             | 57.84 24.72 .408 .600
        from 300K             | lit_ablation_inheritance:300K             | 56.95 25.04 .414 .608
        from 400K, EMA        | lit_ablation_inheritance:400K             | 56.07 25.61 .416 .601
        from 400K, not EMA    | lit_ablation_inheritance:400K-model       | 56.07 25.62 .418 .608
        from 600K             | lit_ablation_inheritance:600K             | 54.80 26.65 .424 .613
        from 800K             | lit_ablation_inheritance:800K             | 53.83 27.16 .425 .614
        from 600K with Q, K, V| lit_ablation_inheritance:600K+qkv         | 55.29 26.09 .419 .619
        from 600K with K, V   | lit_ablation_inheritance:600K+kv          | 55.07 26.38 .422 .609
        from 600K with V      | lit_ablation_inheritance:600K+v           | 54.93 26.44 .427 .612
        from 600K with Q      | lit_ablation_inheritance:600K+q           | 54.82 26.72 .423 .605
        from 600K with O      | lit_ablation_inheritance:600K+o           | 54.84 26.33 .425 .607
        """,
    ),
    *_rows(
        "4",
        """
        teacher S/2, 0.1, 0   | lit_ablation_distillation:S/2-0.1-0       | 55.11 26.28 .419 .614
        no teacher            | lit_ablation_inheritance:800K             | 53.83 27.16 .425 .614
        XL/2, 0.1, 0          | lit_ablation_distillation:XL/2-0.1-0      | 53.05 27.43 .431 .609
        XL/2, 0.05, 0         | lit_ablation_distillation:XL/2-0.05-0     | 53.41 27.26 .427 .610
        XL/2, 0.5, 0          | lit_ablation_distillation:XL/2-0.5-0      | 51.13 28.89 .438 .616
        XL/2, 0.1, 0.05       | lit_ablation_distillation:XL/2-0.1-0.05   | 52.76 27.70 .431 .620
        XL/2, 0, 0.05         | lit_ablation_distillation:XL/2-0-0.05     | 53.49 27.26 .429 .609
        XL/2, 0.05, 0.05      | lit_ablation_distillation:XL/2-0.05-0.05  | 53.14 27.46 .431 .609
        XL/2, 0.5, 0.05       | lit_ablation_distillation:XL/2-0.5-0.05   | 50.79 29.17 .443 .618
        """,
    ),
    *_rows(
        "5",
        """
        LiT-S/2, 100K         | lit_imagenet256:S/2-100K                  | 60.91 23.51 .399 .583
        LiT-B/2, 100K         | lit_imagenet256:B/2-100K                  | 38.39 38.59 .516 .627
        LiT-L/2, 100K         | lit_imagenet256:L/2-100K                  | 17.80 76.26 .639 .636
        LiT-XL/2, 100K        | lit_imagenet256:XL/2-100K                 | 12.90 95.80 .657 .653
        DiT-S/2               | dit_imagenet256:S/2                       | 68.40
        DiT-B/2               | dit_imagenet256:B/2                       | 43.47
        DiT-L/2               | dit_imagenet256:L/2                       | 23.33
        DiT-XL/2              | dit_imagenet256:XL/2                      | 19.47
        LiT-S/2               | lit_imagenet256:S/2                       | 50.79 29.17 .443 .618
        LiT-B/2               | lit_imagenet256:B/2                       | 29.55 50.57 .557 .645
        LiT-L/2               | lit_imagenet256:L/2                       | 13.73 90.53 .656 .650
        LiT-XL/2              | lit_imagenet256:XL/2                      | 10.67 110.95 .668 .667
        """,
    ),
    *_rows(
        "DiG",
        """
        DiG-S/2               | dig_imagenet256:S/2                       | 62.06 22.81 .39 .56
        DiG-B/2               | dig_imagenet256:B/2                       | 39.50 37.21 .51 .63
        DiG-L/2               | dig_imagenet256:L/2                       | 22.90 59.87 .60 .64
        DiG-XL/2              | dig_imagenet256:XL/2                      | 18.53 68.53 .63 .64
        """,
    ),
    *_rows(
        "CLEAR",
        """
        S/2, r = 8                | clear_imagenet256:S/2               |
        S/2, r = 4                | clear_imagenet256:S/2-r4            |
        S/2, r = 8, f = 4         | clear_imagenet256:S/2-r8-f4         |
        S/2, r = 4, f = 4         | clear_imagenet256:S/2-r4-f4         |
        B/2, r = 8                | clear_imagenet256:B/2               |
        B/2, r = 4                | clear_imagenet256:B/2-r4            |
        B/2, r = 8, f = 4         | clear_imagenet256:B/2-r8-f4         |
        B/2, r = 4, f = 4         | clear_imagenet256:B/2-r4-f4         |
        L/2, r = 8                | clear_imagenet256:L/2               |
        L/2, r = 4                | clear_imagenet256:L/2-r4            |
        L/2, r = 8, f = 4         | clear_imagenet256:L/2-r8-f4         |
        L/2, r = 4, f = 4         | clear_imagenet256:L/2-r4-f4         |
        XL/2, r = 8               | clear_imagenet256:XL/2              |
        XL/2, r = 4               | clear_imagenet256:XL/2-r4           |
        XL/2, r = 8, f = 4        | clear_imagenet256:XL/2-r8-f4        |
        XL/2, r = 4, f = 4        | clear_imagenet256:XL/2-r4-f4        |
        512 px XL/2, r = 8        | clear_imagenet512:XL/2              |
        512 px XL/2, r = 4        | clear_imagenet512:XL/2-r4           |
        512 px XL/2, r = 16       | clear_imagenet512:XL/2-r16          |
        512 px XL/2, r = 8, f = 4 | clear_imagenet512:XL/2-r8-f4        |
        512 px XL/2, r = 4, f = 4 | clear_imagenet512:XL/2-r4-f4        |
        """,
    ),
    *_rows(
        "6",
        """
        DiT-XL/2, released | dit_imagenet256:XL/2-7M | 9.62 121.50 .67 .67
        DiT-XL/2, released | dit_imagenet256:XL/2-7M | 3.22 201.77 .76 .62 | 1.25
        DiT-XL/2, released | dit_imagenet256:XL/2-7M | 2.27 278.24 .83 .57 | 1.5
        LiT-XL/2 | lit_imagenet256:XL/2-1.4M | 10.24 114.79 .666 .674
        LiT-XL/2 | lit_imagenet256:XL/2-1.4M | 3.60 191.06 .758 .623 | 1.25
        LiT-XL/2 | lit_imagenet256:XL/2-1.4M | 2.32 265.20 .824 .574 | 1.5
        """,
    ),
    *_rows(
        "7",
        """
        DiT-XL/2, released | dit_imagenet512:XL/2-3M | 12.03 105.25 .75 .64
        DiT-XL/2, released | dit_imagenet512:XL/2-3M | 4.64 174.77 .81 .57 | 1.25
        DiT-XL/2, released | dit_imagenet512:XL/2-3M | 3.04 240.82 .84 .54 | 1.5
        LiT-XL/2 | lit_imagenet512:XL/2 | 14.00 92.84 .76 .62
        LiT-XL/2 | lit_imagenet512:XL/2 | 3.69 207.97 .85 .53 | 1.5
        """,
    ),
    *_rows(
        "DiT",
        """
        DiT-S/4               | dit_imagenet256:S/4                       | 100.4
        DiT-S/8               | dit_imagenet256:S/8                       | 153.6
        DiT-B/4               | dit_imagenet256:B/4                       | 68.4
        DiT-B/8               | dit_imagenet256:B/8                       | 122.7
        DiT-L/4               | dit_imagenet256:L/4                       | 45.6
        DiT-L/8               | dit_imagenet256:L/8                       | 118.9
        DiT-XL/4              | dit_imagenet256:XL/4                      | 43.0
        DiT-XL/8              | dit_imagenet256:XL/8                      | 106.4
        """,
    ),
    *_rows(
        "sources",
        """
        DiT-S/2               | dit_imagenet256:S/2-800K                  |
        DiT-B/2               | dit_imagenet256:B/2-800K                  |
        DiT-L/2               | dit_imagenet256:L/2-800K                  |
        """,
    ),
)
