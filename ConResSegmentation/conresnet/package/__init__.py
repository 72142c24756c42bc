"""Model packages: the weights of a model with everything needed to use them, in a folder or a .zip file.

A package holds `model.json`, one `*.safetensors` file a network, `LICENSE.txt`, and if there are any `metrics.json`,
`MODEL_CARD.md` and `thumbnail.png`. Nothing in it is executed. Importing this takes the standard library alone, so
Slicer can use it.

The network's channels are the first input by its `intensity`, then its copies one after another, then the second input
and its copies, and so on; `input_channels` counts them all.

A system of one pass over the windows is "single" or "ensemble", whose networks' answers are averaged. One of the type
"coarse_to_fine" has two networks, coarse and fine, and these arguments: "margin", voxels around what the coarse one
found; * "coarse_windows" and "fine_windows", by which windows overlap (6 and 12 where missing, as in the paper);
* "smallest_component", the share of a segment below which a part of it is dropped (0.2). With the tiling "authors", its
windows are as many as in its paper, see `conresnet.systems.coarse_to_fine`.

`model.json`, whole. Fields marked * may be missing, all others must be there; any that is not named here is refused.

    {
      "format": "conresnet-model",
      "format_version": 3,                      versions 1 and 2, which lacked fields, are read too
      "name": "hippocampus",                    letters, digits, ".", "_", "-"; the folder's name once installed
      "title": "Hippocampus",
      "version": "1.0.0",
      "description": "...",                     *
      "license": "CC-BY-SA-4.0",
      "attribution": "...",                     *
      "citations": ["..."],                     *
      "training_data": "...",                   *
      "intended_use": "...",                    *
      "limitations": "...",                     *
      "residual_axis": "axial",                 * derived: axial, coronal or sagittal slices are compared
      "inputs": [                               the images, in the order in which they are given
        {
          "name": "T1",
          "modality": "MR",
          "keywords": ["t1", "mprage"],         * words in a name that speak for this channel
          "exclude_keywords": ["t1c"],          * words that speak against it
          "intensity": [                        * the steps of conresnet.intensity, one after another
            {"step": "clip_percentiles", "low": 0.5, "high": 99.5},
            {"step": "z_score_slices", "over": "foreground", "outside": "zero"}
          ],
          "copies": [                           * further channels of the same image, each by steps of its own
            [
              {"step": "subtract_gaussian", "sigma_mm": 5.0},
              {"step": "equalize", "clip_limit": 0.01, "tiles": 8},
              {"step": "z_score_slices", "over": "foreground", "outside": "zero"}
            ]
          ]
        }
      ],
      "preparation": {
        "orientation": "SAR",                   the directions in which S, H and W increase
        "spacing": [1, 1, 1],                   * mm along S, H, W; null: the image's own
        "foreground": "not_background",         or "all"
        "roi": "cut"                            sees nothing but the ROI; "limit": only the result ends there
      },
      "system": {
        "type": "single",                       how the networks make a segmentation, see above
        "arguments": {},                        * the system's own
        "networks": [
          {
            "type": "conresnet",
            "arguments": {"input_channels": 2, "outputs": 3, "residual_outputs": 2, "base_width": 16},
            "weights": "network.safetensors"
          }
        ]
      },
      "inference": {
        "window": [40, 56, 40],                 voxels along S, H, W
        "overlap": 0.5,                         of a window, at least; 0 to 0.9
        "tiling": "fitted",                     or "authors"
        "blending": "gaussian",                 or "uniform"
        "mirror_axes": []                       * of "S", "H", "W"
      },
      "output": {
        "kind": "labels",                       softmax over background and segments; "regions": a sigmoid each
        "threshold": 0.5,                       * of regions
        "segments": [                           in the order of the network's outputs, background left out
          {
            "name": "Anterior hippocampus",
            "label": 1,                         1 to 255
            "color": [111, 184, 210],           red, green, blue; 0 to 255
            "includes": [],                     * of regions: names of those that are part of it, painted later
            "terminology": {                    * also * type_modifier, region, region_modifier
              "category": {"scheme": "SCT", "value": "123037004", "meaning": "Anatomical Structure"},
              "type": {"scheme": "SCT", "value": "91723000", "meaning": "Anatomical Structure"}
            }
          },
          {"name": "Posterior hippocampus", "label": 2, "color": [216, 101, 79]}
        ],
        "paint_order": ["Anterior hippocampus", "Posterior hippocampus"]     * a later one over an earlier one
      },
      "files": {                                every file but model.json
        "network.safetensors": {
          "sha256": "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
          "bytes": 9876543
        }
      }
    }
"""

from conresnet.package.description import ModelDescription
from conresnet.package.parsing import parse_description
from conresnet.package.reader import ModelPackage, read_package
from conresnet.package.writer import write_package

__all__ = ["ModelDescription", "ModelPackage", "parse_description", "read_package", "write_package"]
