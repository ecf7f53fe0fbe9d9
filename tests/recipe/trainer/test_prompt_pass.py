import pytest

from recipe.poise.trainer.prompt_pass import refuse_media


def test_prompts_with_images_are_refused_by_what_they_have():
    refuse_media([{}, None, {}])
    with pytest.raises(ValueError, match="have image_grid_thw, pixel_values: .* poise.states="):
        refuse_media([{}, {"pixel_values": 1, "image_grid_thw": 2}])
