"""Snapshots know when they were last frozen, and those to come have file names of their own."""

import django.utils.timezone
from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("adapters_app", "0011_studies_that_were_cut_short")]

    operations = [
        migrations.AddField(
            model_name="snapshot",
            name="file_mark",
            field=models.CharField(
                blank=True,
                help_text="Ends its file's name: that of a pruned snapshot is not given again.",
                max_length=8,
            ),
        ),
        migrations.AddField(
            model_name="snapshot",
            name="frozen_at",
            field=models.DateTimeField(
                default=django.utils.timezone.now,
                help_text="When these verdicts were last asked for.",
            ),
        ),
    ]
